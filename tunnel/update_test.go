package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// changed is the ward's configuration with a change.
func (w *ward) changed(change func(*Config)) Config {
	c := w.config
	c.Platforms = append([]Platform(nil), c.Platforms...)
	c.Listeners = append([]Listener(nil), c.Listeners...)
	for i := range c.Listeners {
		c.Listeners[i].Routes = append([]Route(nil), c.Listeners[i].Routes...)
	}
	change(&c)
	return c
}

func TestAReloadKeepsGoodSessions(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"nothing changes":            func(*Config) {},
		"limits and times":           func(c *Config) { c.Listeners[0].MaxPerDevice, c.Listeners[0].IdleTimeout = 3, time.Minute },
		"another name of a listener": func(c *Config) { c.Listeners[0].Name = "ward 7" },
		"one more route": func(c *Config) {
			c.Platforms = append(c.Platforms, c.Platforms[0])
			c.Platforms[1].Name, c.Platforms[1].Address = "second", "second.test:2575"
			c.Listeners[0].Routes = append(c.Listeners[0].Routes, Route{Platform: "second"})
		},
		"one more listener": func(c *Config) {
			c.Listeners = append(c.Listeners, c.Listeners[0])
			c.Listeners[1].Name, c.Listeners[1].Address = "second", "127.0.0.2:0"
		},
		"how often it is judged":          func(c *Config) { c.Platforms[0].Recheck, c.Platforms[0].VerdictAge = time.Minute, time.Second },
		"another identity of the gateway": func(c *Config) { c.Platforms[0].StapleMaxAge = 48 * time.Hour },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWard(t, newFar(t), nil)
			c, at := w.device(tls.VersionTLS12), w.address()
			w.echo(c, "before")
			must(t, w.Update(w.changed(change)))
			w.echo(c, "after")
			w.echo(w.device(tls.VersionTLS13), "a new one")
			if got := w.address(); got != at {
				t.Errorf("the socket moved from %s to %s", at, got)
			}
			w.until("every listener", func(s Status) bool {
				for _, l := range s.Listeners {
					if l.Bound == "" {
						return false
					}
				}
				return true
			})
		})
	}
}

func TestAReloadEndsSessionsThatHaveNoPlace(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"the device's network is gone": func(c *Config) {
			c.Listeners[0].Networks = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		},
		"its listener is gone": func(c *Config) { c.Listeners[0].Address = "127.0.0.2:0" },
		"the platform moved":   func(c *Config) { c.Platforms[0].Connect = "127.0.0.1:1" },
		"no name, no platform": func(c *Config) { c.Listeners, c.Platforms = nil, nil },
		"its name leads elsewhere": func(c *Config) {
			c.Platforms = append(c.Platforms, c.Platforms[0])
			c.Platforms[1].Name, c.Platforms[1].Address = "second", "second.test:2575"
			c.Listeners[0].Routes = []Route{{Platform: "second", ServerNames: []string{"platform.test"}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWard(t, newFar(t), nil)
			c := w.device(tls.VersionTLS12)
			w.echo(c, "before")
			must(t, w.Update(w.changed(change)))
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("it lives on")
			}
			if e := w.event(Closed); !errors.Is(e.Err, errRemoved) {
				t.Errorf("%+v", e)
			}
		})
	}
}

// A session that is never silent has the grace, and no more.
func TestDrainWaitsForSilenceOrTheGrace(t *testing.T) {
	t.Parallel()
	w := newWard(t, newFar(t), func(o *Options) { o.Quiet, o.Grace = 10*time.Second, 300*time.Millisecond })
	c := w.device(tls.VersionTLS13)
	w.echo(c, "it flows") // one that is in its handshake is cut at once
	began, drains := time.Now(), false
	must(t, w.Update(Config{}))
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			break
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			break
		}
		if s := w.Status(); len(s.Sessions) == 1 && s.Sessions[0].Draining {
			drains = true
		}
	}
	if !drains {
		t.Error("it was not said that it drains")
	}
	if took := time.Since(began); took < 300*time.Millisecond || took > 5*time.Second {
		t.Errorf("it ended after %v", took)
	}
}

func TestNewRootsJudgeOpenSessionsAnew(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	w := newWard(t, f, nil)
	c := w.device(tls.VersionTLS12)
	w.echo(c, "before")
	foreign, err := f.Find("ecc-foreign-root")
	must(t, err)
	must(t, w.Update(w.changed(func(c *Config) {
		c.Platforms[0].Roots = x509.NewCertPool()
		c.Platforms[0].Roots.AddCert(foreign.Certificate)
	})))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("it lives on")
	}
	if e := w.event(Closed); !strings.Contains(e.Err.Error(), "B17") {
		t.Errorf("%+v", e)
	}
}

// A corrected configuration shows at once what comes of it, also where no device is there.
func TestAPlatformThatNobodyUsesIsJudgedByNewRoots(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	foreign, err := f.Find("ecc-foreign-root")
	must(t, err)
	w := newWard(t, f, func(o *Options) {
		o.Config.Platforms[0].Roots = x509.NewCertPool()
		o.Config.Platforms[0].Roots.AddCert(foreign.Certificate)
	})
	if _, err := w.connect(w.deviceConfig(tls.VersionTLS12)); err == nil {
		t.Fatal("it got through")
	}
	must(t, w.Update(w.changed(func(c *Config) { c.Platforms[0].Roots = f.Roots() })))
	if p := w.Status().Platforms[0]; p.Result.Closed() || p.Result != Good && p.Err != nil {
		t.Errorf("the old fault is still there: %+v", p)
	}
	w.until("a good platform", func(s Status) bool { return len(s.Platforms) == 1 && s.Platforms[0].Result == Good })
}

// A handshake that was under way when the rules changed says nothing about the new ones.
func TestAHandshakeByOldRulesIsMadeAgain(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	held, free := make(chan struct{}), make(chan struct{})
	var first sync.Once
	w := newWard(t, f, func(o *Options) {
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			first.Do(func() { close(held); <-free })
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	})
	waits := make(chan error, 1)
	go func() {
		_, err := w.connect(w.deviceConfig(tls.VersionTLS12))
		waits <- err
	}()
	<-held
	foreign, err := f.Find("ecc-foreign-root")
	must(t, err)
	must(t, w.Update(w.changed(func(c *Config) {
		c.Platforms[0].Roots = x509.NewCertPool()
		c.Platforms[0].Roots.AddCert(foreign.Certificate)
	})))
	close(free)
	if err := <-waits; err == nil {
		t.Error("a device got through by the old roots")
	}
	if e := w.event(RefusedOne); e.Rule != "B17" {
		t.Errorf("%s: %v", e.Rule, e.Err)
	}
}

func TestAWrongConfigurationChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWard(t, newFar(t), nil)
	c := w.device(tls.VersionTLS12)
	for _, test := range []struct {
		name, word string
		change     func(*Config)
	}{
		{"no device may connect", "list their networks", func(c *Config) { c.Listeners[0].Networks = nil }},
		{"no route", "leads nowhere", func(c *Config) { c.Listeners[0].Routes = nil }},
		{"an unknown platform", `no platform "other"`, func(c *Config) { c.Listeners[0].Routes[0].Platform = "other" }},
		{"an address without port", "missing port", func(c *Config) { c.Platforms[0].Address = "platform.test" }},
		{"an address without host", "lacks a host", func(c *Config) { c.Platforms[0].Address = ":2575" }},
		{"connect without port", "missing port", func(c *Config) { c.Platforms[0].Connect = "x" }},
		{"a platform twice", "there twice", func(c *Config) { c.Platforms = append(c.Platforms, c.Platforms[0]) }},
		{"a platform without name", "no name", func(c *Config) { c.Platforms[0].Name = "" }},
		{"a listener twice", "another one listens", func(c *Config) { c.Listeners = append(c.Listeners, c.Listeners[0]) }},
		{"a name twice", "leads to", func(c *Config) {
			c.Platforms = append(c.Platforms, c.Platforms[0])
			c.Platforms[1].Name = "second"
			c.Listeners[0].Routes = append(c.Listeners[0].Routes, Route{Platform: "second"})
		}},
		{"an empty name", "is empty", func(c *Config) { c.Listeners[0].Routes = []Route{{Platform: "hospital", ServerNames: []string{""}}} }},
		{"a route that nobody can take", "no session can take", func(c *Config) {
			c.Platforms[0].Address = "192.0.2.1:2575"
			c.Listeners[0].Routes = []Route{{Platform: "hospital"}}
		}},
		{"a negative limit", "negative", func(c *Config) { c.Listeners[0].MaxSessions = -1 }},
		{"a negative time", "negative", func(c *Config) { c.Platforms[0].Recheck = -1 }},
		{"a listener without port", "missing port", func(c *Config) { c.Listeners[0].Address = "x" }},
	} {
		err := w.Update(w.changed(test.change))
		if err == nil || !strings.Contains(err.Error(), test.word) {
			t.Errorf("%s: %v", test.name, err)
		}
		w.echo(c, "ping")
	}
	for name, change := range map[string]func(*Config){
		"B15": func(c *Config) { c.Platforms[0].Roots = nil },
		"B16": func(c *Config) { c.Platforms[0].Identity = tls.Certificate{} },
	} {
		err := w.Update(w.changed(change))
		if r, ok := errors.AsType[*tlspolicy.RefusalError](err); !ok || r.Rule != name {
			t.Errorf("%s: %v", name, err)
		}
		w.echo(c, "ping")
	}
}

func TestAListenerThatCannotListenIsTriedAgain(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	f := newFar(t)
	w := newWard(t, f, nil)
	c := w.device(tls.VersionTLS12)
	must(t, w.Update(w.changed(func(c *Config) {
		c.Listeners = append(c.Listeners, c.Listeners[0])
		c.Listeners[1].Name, c.Listeners[1].Address = "zz", taken.Addr().String()
	})))
	w.until("the fault", func(s Status) bool { return s.Listeners[1].Fault != nil && s.Listeners[1].Bound == "" })
	w.echo(c, "ping")
	taken.Close()
	w.until("the listener", func(s Status) bool {
		return s.Listeners[1].Fault == nil && s.Listeners[1].Bound == taken.Addr().String()
	})
	if text := w.log.String(); strings.Count(text, "devices cannot connect") != 1 {
		t.Error(text)
	}
}

func TestStopEndsHandshakesAtOnceAndSaysSo(t *testing.T) {
	t.Parallel()
	f := newFar(t, face{mute: true})
	w := newWard(t, f, func(o *Options) { o.GateTimeout, o.Grace = time.Minute, time.Minute })
	waits := make(chan error, 1)
	go func() {
		_, err := w.connect(w.deviceConfig(tls.VersionTLS12))
		waits <- err
	}()
	for f.connections.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	silent := w.raw()
	w.until("both", func(s Status) bool { return s.Listeners[0].Handshakes == 2 })
	began := time.Now()
	w.stop()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if err := <-waits; err == nil || !strings.Contains(err.Error(), "user canceled") {
		t.Errorf("the device is told %v", err)
	}
	if got := ended(t, silent); got != "\x15\x03\x03\x00\x02\x02\x5a" {
		t.Errorf("a device that was silent is told %q", got)
	}
	if _, err := net.Dial("tcp", f.address()); err != nil {
		t.Error(err)
	}
	if text := w.log.String(); strings.Contains(text, "the gate is closed") || w.Status().Gate[Unreachable] != 0 {
		t.Errorf("the platform is blamed for the gateway's stop: %+v\n%s", w.Status().Gate, text)
	}
	if err := w.Update(w.config); !errors.Is(err, errStopping) {
		t.Errorf("%v", err)
	}
	if err := w.Run(context.Background()); err == nil {
		t.Error("it ran twice")
	}
}

// A device that waits while its way is taken out of the configuration is told so.
func TestAReloadTellsDevicesThatWait(t *testing.T) {
	t.Parallel()
	f := newFar(t, face{mute: true})
	w := newWard(t, f, func(o *Options) { o.GateTimeout = time.Minute })
	waits := make(chan error, 1)
	go func() {
		_, err := w.connect(w.deviceConfig(tls.VersionTLS12))
		waits <- err
	}()
	w.until("a device that waits", func(s Status) bool { return s.Listeners[0].Handshakes == 1 && f.connections.Load() > 0 })
	must(t, w.Update(Config{}))
	if err := <-waits; err == nil || !strings.Contains(err.Error(), "user canceled") {
		t.Errorf("the device is told %v", err)
	}
	if e := w.event(RefusedOne); e.Rule != "shutdown" || e.Severity != Passing || !errors.Is(e.Err, errRemoved) {
		t.Errorf("%+v", e)
	}
}

// A session whose bytes wait for a slow receiver is not silent.
func TestDrainWaitsForAReceiverThatIsSlow(t *testing.T) {
	t.Parallel()
	w := newWard(t, newFar(t), func(o *Options) { o.Grace, o.Quiet = time.Minute, time.Second })
	c := w.device(tls.VersionTLS13)
	w.echo(c, "it flows")
	large := strings.Repeat("0123456789abcdef", 2<<20) // more than all buffers take
	sent := make(chan error, 1)
	go func() { _, err := io.WriteString(c, large); sent <- err }()
	w.until("bytes that wait for the device", func(s Status) bool {
		return len(s.Sessions) == 1 && s.Sessions[0].ToDevice > 0 && time.Since(s.Sessions[0].Last) > 500*time.Millisecond
	})
	must(t, w.Update(Config{}))
	w.until("a drain", func(s Status) bool {
		return len(s.Sessions) == 1 && s.Sessions[0].Draining && time.Since(s.Sessions[0].Last) > 2*time.Second
	})
	got := make([]byte, len(large))
	_, err := io.ReadFull(c, got)
	must(t, err)
	must(t, <-sent)
	if string(got) != large {
		t.Error("something else arrived than was sent")
	}
	if e := w.event(Closed); e.Result != "drained" || !errors.Is(e.Err, errRemoved) {
		t.Errorf("%+v", e)
	}
}

func TestAnIdleSessionEnds(t *testing.T) {
	t.Parallel()
	w := newWard(t, newFar(t), func(o *Options) { o.Config.Listeners[0].IdleTimeout = 100 * time.Millisecond })
	if c, err := w.connect(w.deviceConfig(tls.VersionTLS12)); err == nil { // a machine that is busy is idle before
		_, _ = io.ReadAll(c) // however it ends
	}
	w.until("the end", func(s Status) bool { return s.Ended["idle"] == 1 })
}
