package demo

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/internal/sim/platform"
	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
	"github.com/bedside-gateway/gatewayd/internal/status"
	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/pcd"
)

// A tunnelDemo is a run of RunTunnel.
type tunnelDemo struct {
	demo
	pumps   []*pump
	revoked atomic.Bool
	client  *status.Client
	address string // of the tunnel
}

// RunTunnel shows devices that speak TLS with the platform themselves, through
// the tunnel of the real gatewayd: one with TLS 1.2, one with TLS 1.3. On the
// way the platform's certificate is revoked, the gate closes, and the platform
// comes back with another one. The last line is that of Run.
func RunTunnel(ctx context.Context, o Options) (err error) {
	if o.Duration < MinDuration {
		return fmt.Errorf("a demo takes at least %v: the gate needs some seconds to close and open", MinDuration)
	}
	o.Live = false
	d := &tunnelDemo{demo: demo{o: o, began: time.Now()}}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer func() {
		cancel()
		running.Wait()
		err = errors.Join(err, d.close())
	}()
	if err := d.build(ctx); err != nil {
		return err
	}
	if err := d.begin(ctx); err != nil {
		return d.explain(err)
	}
	stop := make(chan struct{})
	for _, p := range d.pumps {
		running.Go(func() { p.run(ctx, stop) })
	}
	err = d.play(ctx)
	close(stop)
	late := time.AfterFunc(15*time.Second, cancel) // a message that is never acknowledged shows in the count
	running.Wait()
	late.Stop()
	if err != nil {
		return d.explain(err)
	}
	return d.settle()
}

func (d *tunnelDemo) build(ctx context.Context) (err error) {
	if d.dir, err = workDir(d.o.Dir); err != nil {
		return err
	}
	if d.gateway, err = newGateway(d.o.Gatewayd, d.dir); err != nil {
		return err
	}
	if d.hospital, err = pki.New(pki.Options{}); err != nil {
		return err
	}
	if err := d.hospital.Write(filepath.Join(d.dir, "pki")); err != nil {
		return err
	}
	if err := d.open("platform", "127.0.0.1:0"); err != nil {
		return err
	}
	id, err := d.hospital.Identity("device")
	if err != nil {
		return err
	}
	for name, version := range map[string]uint16{"pump-1": tls.VersionTLS12, "pump-2": tls.VersionTLS13} {
		d.pumps = append(d.pumps, &pump{d: d, name: name, tls: &tls.Config{ServerName: pki.DefaultPlatform, InsecureSkipVerify: true, VerifyConnection: d.known,
			Certificates: []tls.Certificate{id}, MinVersion: version, MaxVersion: version}})
	}
	d.client = status.NewClient(filepath.Join(d.dir, socketFile))
	if err := d.openBox(ctx); err != nil {
		return err
	}
	listen, err := freePort()
	if err != nil {
		return err
	}
	text := fmt.Sprintf("[gateway]\nname = \"GW_DEMO\"\neui64 = %q\nstate_dir = \"state\"\nstatus_socket = %q\n\n[identity]\n%s\n"+
		"[[tunnel]]\nname = \"icu\"\nlisten = %q\nnetworks = [\"127.0.0.0/8\"]\n\n[[tunnel.platform]]\nname = \"hospital\"\naddress = %q\nconnect = %q\ntrust = \"pki/roots.pem\"\nrecheck = \"1s\"\n",
		pki.DefaultDevice.String(), filepath.Join(d.dir, socketFile), d.box.identity(), listen, pki.DefaultPlatform+":2575", d.platform.Address())
	return os.WriteFile(filepath.Join(d.dir, configFile), []byte(text), 0o600)
}

// known is how the devices judge the platform: by path and name, the subject's
// included, as B17 has it, and not by revocation.
func (d *tunnelDemo) known(state tls.ConnectionState) error {
	sent := state.PeerCertificates
	others := x509.NewCertPool()
	for _, c := range sent[1:] {
		others.AddCert(c)
	}
	if _, err := sent[0].Verify(x509.VerifyOptions{Roots: d.hospital.Roots(), Intermediates: others}); err != nil {
		return err
	}
	if name := sent[0].Subject.CommonName; name != pki.DefaultPlatform {
		return fmt.Errorf("%s is another platform", name)
	}
	return nil
}

// freePort is an address that is free now: a configuration names its port.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// open runs a platform with a certificate, at an address. It staples what the
// CA says of that certificate, which the demo can have revoked.
func (d *tunnelDemo) open(identity, address string) error {
	id, err := d.hospital.Identity(identity)
	if err != nil {
		return err
	}
	chain, err := d.hospital.Chain(identity)
	if err != nil {
		return err
	}
	good, bad := responder.Staples(d.hospital, chain, nil), responder.Staples(d.hospital, chain, []responder.Answer{responder.Revoked})
	d.platform, err = platform.New(platform.Options{Certificates: []tls.Certificate{id}, Roots: d.hospital.Roots(), Hospital: d.hospital, Dir: filepath.Join(d.dir, "platform"),
		Staples: func(int) [][]byte {
			if d.revoked.Load() {
				return bad
			}
			return good
		}})
	if err != nil {
		return err
	}
	return d.platform.Listen(address)
}

func (d *tunnelDemo) begin(ctx context.Context) error {
	d.say("the platform listens on %s, mutual TLS, with staples for its chain", d.platform.Address())
	if err := d.enroll(ctx); err != nil {
		return err
	}
	if err := d.gateway.start(); err != nil {
		return err
	}
	if err := d.gateway.ready(ctx); err != nil {
		return err
	}
	return d.await(ctx, "the tunnel", 10*time.Second, func() bool {
		t := d.look(ctx)
		if t == nil || len(t.Listeners) == 0 || t.Listeners[0].Address == "" {
			return false
		}
		d.address = t.Listeners[0].Address
		d.say("gatewayd runs as process %d; devices connect to its tunnel at %s", d.gateway.running().Pid, d.address)
		return true
	})
}

// look is what gatewayd says of its tunnel, nil where it says nothing.
func (d *tunnelDemo) look(ctx context.Context) *status.Tunnel {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := d.client.Report(ctx)
	if err != nil {
		return nil
	}
	return r.Tunnel
}

// play is the story.
func (d *tunnelDemo) play(ctx context.Context) error {
	if err := d.await(ctx, "both devices at the platform", 20*time.Second, func() bool { return d.flowing(ctx) == len(d.pumps) }); err != nil {
		return err
	}
	for _, s := range d.look(ctx).Sessions {
		d.say("  %s %s, the platform's certificate in it: %s", s.Device, s.TLS, map[bool]string{true: "judged and its key proved (enforced)", false: "not visible, the gate's look counts (gate only)"}[s.Enforced])
	}
	pause(ctx, d.o.Duration/3)
	d.progress()
	d.revoked.Store(true)
	d.say("REVOKED: the CA revokes the platform's certificate; the platform staples that it is")
	if err := d.await(ctx, "the gate to close", 20*time.Second, func() bool {
		t := d.look(ctx)
		return t != nil && len(t.Sessions) == 0 && t.Gate["refused"] > 0
	}); err != nil {
		return err
	}
	for _, p := range d.look(ctx).Platforms {
		d.say("THE GATE IS CLOSED, both sessions are cut: %s", p.Fault)
	}
	before := d.acknowledged()
	pause(ctx, d.o.Duration/6)
	if now := d.acknowledged(); now != before {
		return fmt.Errorf("%d messages went through a closed gate", now-before)
	}
	d.say("devices try and are turned away by a TLS alert: %d times so far; they keep what is not acknowledged", d.turnedAway())
	address := d.platform.Address()
	if err := d.platform.Close(); err != nil {
		return err
	}
	d.revoked.Store(false)
	if err := d.open("platform-cn-only", address); err != nil {
		return err
	}
	d.say("the platform is back with a new certificate")
	if err := d.await(ctx, "both devices at the platform again", 20*time.Second, func() bool { return d.flowing(ctx) == len(d.pumps) }); err != nil {
		return err
	}
	d.say("the gate is open again")
	pause(ctx, d.o.Duration/3)
	return ctx.Err()
}

// flowing is how many sessions have carried an answer.
func (d *tunnelDemo) flowing(ctx context.Context) (n int) {
	t := d.look(ctx)
	if t == nil {
		return 0
	}
	for _, p := range d.pumps {
		if p.connected.Load() {
			n++
		}
	}
	return min(n, len(t.Sessions))
}

func (d *tunnelDemo) acknowledged() (n int64) {
	for _, p := range d.pumps {
		n += p.acknowledged.Load()
	}
	return n
}

func (d *tunnelDemo) turnedAway() (n int64) {
	for _, p := range d.pumps {
		n += p.refused.Load()
	}
	return n
}

func (d *tunnelDemo) progress() {
	for _, p := range d.pumps {
		d.say("%s: %d messages acknowledged by the platform", p.name, p.acknowledged.Load())
	}
}

// settle counts both ends against each other.
func (d *tunnelDemo) settle() error {
	d.progress()
	c, sent := d.platform.Counts(), d.acknowledged()
	lost, duplicated := sent-int64(c.Stored), c.Repeated+c.Conflicts
	d.say("the devices had %d messages acknowledged; the platform stored %d, %d came again under the same control ID", sent, c.Stored, c.Again)
	fmt.Fprintf(d.o.Out, "demo: %d messages acknowledged, %d lost, %d duplicated\n", sent, max(lost, 0), duplicated)
	if lost != 0 || duplicated != 0 || c.Rejected != 0 || sent == 0 {
		return ErrDiffer
	}
	return nil
}

// A pump is a simulated device with TLS of its own. What keeps it from a revoked
// platform is the gateway.
type pump struct {
	d    *tunnelDemo
	name string
	tls  *tls.Config

	connected             atomic.Bool
	acknowledged, refused atomic.Int64
}

const (
	pace  = 100 * time.Millisecond // from one message to the next
	retry = 500 * time.Millisecond // from one try to connect to the next
)

// run sends one message after the other, each until it is acknowledged, and
// ends with the acknowledgement that is due at the time of stop.
func (p *pump) run(ctx context.Context, stop <-chan struct{}) {
	var c *mllp.Conn
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	n, text := 1, p.message(1)
	for ctx.Err() == nil {
		var err error
		next := pace
		if c == nil {
			c, err = p.connect(ctx)
		}
		if err == nil {
			err = p.send(c, n, text)
		}
		if err == nil {
			n++
			text = p.message(n)
			p.acknowledged.Add(1)
			p.connected.Store(true)
			select {
			case <-stop:
				return
			default:
			}
		} else {
			p.connected.Store(false)
			next = retry
			if c != nil {
				_ = c.Close()
				c = nil
			}
		}
		pause(ctx, next)
	}
}

func (p *pump) connect(ctx context.Context) (*mllp.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := (&tls.Dialer{Config: p.tls}).DialContext(ctx, "tcp", p.d.address)
	if err != nil {
		p.refused.Add(1)
		return nil, err
	}
	secure := c.(*tls.Conn)
	state := secure.ConnectionState()
	p.d.say("%s: %s end to end with %s (%s)", p.name, tls.VersionName(state.Version), state.PeerCertificates[0].Subject.CommonName, tls.CipherSuiteName(state.CipherSuite))
	return mllp.NewConn(c, 64<<10), nil
}

func (p *pump) id(n int) string { return fmt.Sprintf("%s-%d", p.name, n) }

// message is the nth one. It is made once: whoever sends another one under the
// same control ID is refused, and rightly so.
func (p *pump) message(n int) string {
	id := p.id(n)
	at := time.Now().UTC().Format("20060102150405.000+0000")
	return strings.Join([]string{
		`MSH|^~\&|` + p.name + `^` + pki.DefaultDevice.String() + `^EUI-64||||` + at + `||ORU^R01^ORU_R01|` + id + `|P|2.6|||AL|NE|||||IHE_PCD_001^IHE PCD^1.3.6.1.4.1.19376.1.6.1.1.1^ISO`,
		`PID|||^^^HOSPITAL_A^PI||^^^^^^U`,
		`OBR|1|` + id + `^` + p.name + `^` + pki.DefaultDevice.String() + `^EUI-64|` + id + `^` + p.name + `^` + pki.DefaultDevice.String() + `^EUI-64|69985^MDC_DEV_PUMP_INFUS_MDS^MDC|||` + at,
		fmt.Sprintf(`OBX|1|NM|157784^MDC_FLOW_FLUID_PUMP^MDC|1.1.1.1|%d|265266^MDC_DIM_MILLI_L_PER_HR^MDC|||||R|||%s`, 10+n%90, at),
	}, "\r") + "\r"
}

// send sends a message and waits for its acknowledgement.
func (p *pump) send(c *mllp.Conn, n int, text string) error {
	id, deadline := p.id(n), time.Now().Add(5*time.Second)
	if err := c.WriteBlock([]byte(text), deadline); err != nil {
		return err
	}
	for {
		block, err := c.ReadBlock(deadline)
		if err != nil {
			return err
		}
		ack, err := pcd.ParseAck(block)
		if err != nil {
			return err
		}
		if ack.Answers(id, false) {
			if ack.Code != "CA" && ack.Code != "AA" {
				p.d.say("%s: the platform answers %s with %s", p.name, id, ack.Code)
				return fmt.Errorf("%s is answered with %s", id, ack.Code)
			}
			return nil
		}
	}
}
