package intellivue

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/drivertest"
	"github.com/bedside-gateway/gatewayd/drivers/intellivue/sim"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/observation"
)

// A bedside is a session with a simulated monitor, in the time of a bubble.
type bedside struct {
	monitor *sim.Monitor
	session *drivers.Session

	mu     sync.Mutex     // held by the test but while it waits
	sent   map[string]int // values that the monitor sent
	got    map[string]int // values that were reported
	last   observation.Report
	blocks map[string]int
}

// An openLine can be opened again after it was closed.
type openLine struct{ port.Port }

func (openLine) Close() error { return nil }

// atBedside runs f with a session on a line or a network.
func atBedside(t *testing.T, datagrams bool, o sim.Options, options map[string]string, f func(*bedside)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bedside{sent: map[string]int{}, got: map[string]int{}, blocks: map[string]int{}}
		o.OnNumeric = func(n sim.Numeric) {
			value := n.Value
			if n.State&(stateInvalid|stateUnavailable|stateCalibrating) != 0 || value == "" {
				value = "none"
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			b.sent[fmt.Sprintf("%v %s", metricTerm(n.Physio).code, value)]++
		}
		m, err := sim.New(o)
		if err != nil {
			t.Fatal(err)
		}
		b.monitor = m
		ours, theirs := drivertest.NewLink(datagrams)
		b.session, err = drivers.NewSession(drivers.SessionConfig{
			Name: "bed-1", Driver: Driver{}, Settings: drivers.Settings{Options: options}, Log: slog.New(slog.DiscardHandler),
			Open: func(context.Context, port.Line) (port.Port, error) { return openLine{ours}, nil }, Sink: b.take,
			Lines: (Driver{}).Info().Lines[:1], Timing: drivers.Timing{Quiet: -1},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		go func() { ended <- b.session.Run(ctx) }()
		go func() {
			if datagrams {
				ended <- m.ServePacket(ctx, theirs)
				return
			}
			ended <- m.ServeStream(ctx, theirs)
		}()
		b.mu.Lock()
		f(b)
		b.mu.Unlock()
		cancel()
		<-ended
		<-ended
	})
}

// wait lets time pass until the machine is at rest.
func (b *bedside) wait(d time.Duration) {
	b.mu.Unlock()
	time.Sleep(d)
	synctest.Wait()
	b.mu.Lock()
}

func (b *bedside) take(r *observation.Report) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, o := range r.Observations {
		switch o.Value.Kind {
		case observation.KindNumber, observation.KindNone:
			b.got[fmt.Sprintf("%v %s", o.Code, o.Value.Number)]++
		case observation.KindSamples:
			b.blocks[o.Code.String()]++
		}
	}
	device := *r.Device
	b.last.Device = &device
	b.last.DeviceClock, b.last.Received = r.DeviceClock, r.Received
	if r.Patient != nil {
		p := *r.Patient
		b.last.Patient = &p
	}
	if r.HasAlerts {
		b.last.HasAlerts, b.last.Alerts = true, append([]observation.Alert(nil), r.Alerts...)
	}
}

func TestEveryValueThatASimulatedMonitorSendsIsReportedOnce(t *testing.T) {
	for _, datagrams := range []bool{false, true} {
		atBedside(t, datagrams, sim.Options{Seed: 3, Patient: &sim.Patient{}, Relative: 0xFFFFFFFF - 60*8000}, map[string]string{"poll_lifetime": "30s"}, func(b *bedside) {
			b.wait(10 * time.Minute)
			n := 0
			for value, sent := range b.sent {
				n += sent
				if got := b.got[value]; got != sent {
					t.Errorf("datagrams %v: %s was sent %d times and reported %d times", datagrams, value, sent, got)
				}
			}
			for value := range b.got {
				if b.sent[value] == 0 {
					t.Errorf("datagrams %v: %s was reported and not sent", datagrams, value)
				}
			}
			if n < 5000 {
				t.Errorf("datagrams %v: only %d values in ten minutes", datagrams, n)
			}
			st := b.session.Status()
			if st.State != drivers.Live {
				t.Errorf("datagrams %v: state %v", datagrams, st.State)
			}
			if c := b.monitor.Counts(); c.Associations != 1 || c.BadFrames != 0 || c.BadRequests != 0 {
				t.Errorf("datagrams %v: the monitor counts %+v", datagrams, c)
			}
		})
	}
}

func TestAlarmsPatientDeviceAndWavesOfASimulatedMonitor(t *testing.T) {
	patient := &sim.Patient{ID: "PID-1", Given: "Ann", Family: "Example", Born: "19700102", State: sim.Admitted}
	options := sim.Options{Seed: 5, Patient: patient, Serial: "SIM77", BedLabel: "BED 9", MAC: [6]byte{0, 9, 0xFB, 1, 2, 3}, Clock: shownAtCreate}
	atBedside(t, false, options, map[string]string{"waves": "II,ABP,Pleth,Resp", "patient": "5s"}, func(b *bedside) {
		began := time.Now()
		b.wait(30 * time.Second)
		if d := b.last.Device; d.Serial != "SIM77" || d.BedLabel != "BED 9" || d.ID != 0x0009FBFFFE010203 {
			t.Errorf("device %+v", d)
		}
		if p := b.last.Patient; p == nil || p.Family.Reveal() != "Example" || p.Born.Reveal() != "19700102" || p.Admission != observation.Admitted {
			t.Errorf("patient %+v", p)
		}
		if d := b.last.DeviceClock.Sub(shownAtCreate.Add(b.last.Received.Sub(began))).Abs(); d > 1100*time.Millisecond {
			t.Errorf("the monitor's clock is told %v off", d)
		}
		for _, code := range []string{"MDC_ECG_ELEC_POTL_II", "MDC_PRESS_BLD_ART_ABP", "MDC_PULS_OXIM_PLETH", "MDC_RESP"} {
			if n := b.blocks[code]; n < 70 || n > 115 {
				t.Errorf("%d blocks of %s in 30 s; %v", n, code, b.blocks)
			}
		}
		a := sim.Alarm{Source: 0x4182, Code: 0x0028, Priority: sim.High, Text: "***HR HIGH", Latched: true}
		b.monitor.RaiseAlarm(a)
		b.wait(3 * time.Second)
		if l := b.last.Alerts; len(l) != 1 || l[0].Code != 196648 || l[0].Source != 147842 || l[0].Priority != observation.PriorityHigh ||
			l[0].Text != "***HR HIGH" || !l[0].Latched || l[0].Technical {
			t.Errorf("alerts %+v", l)
		}
		b.monitor.ClearAlarm(a)
		if err := b.monitor.SetPatient(nil); err != nil {
			t.Fatal(err)
		}
		b.wait(10 * time.Second)
		if len(b.last.Alerts) != 0 {
			t.Errorf("alerts %+v", b.last.Alerts)
		}
		if p := b.last.Patient; !p.Family.Empty() || p.Admission == observation.Admitted {
			t.Errorf("the patient is gone and still told: %+v", p)
		}
	})
}

func TestASimulatedMonitorThatRebootsRefusesOrIsGarbledComesBack(t *testing.T) {
	for name, c := range map[string]struct {
		options sim.Options
		then    func(*bedside)
		least   uint64
	}{
		"reboot":  {sim.Options{}, func(b *bedside) { b.monitor.Reboot() }, 2},
		"release": {sim.Options{}, func(b *bedside) { b.monitor.Release() }, 2},
		"unplugged for a minute": {sim.Options{}, func(b *bedside) {
			b.monitor.Unplug()
			b.wait(time.Minute)
			b.monitor.Plug()
		}, 2},
		"refuses three times": {sim.Options{Busy: 3}, func(*bedside) {}, 1},
		"a bad line":          {sim.Options{GarbleRate: 0.05, HalfFrame: 0.05}, func(*bedside) {}, 1},
		"linked in crumbs":    {sim.Options{Part: 200, ClosingData: true}, func(*bedside) {}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			c.options.Seed, c.options.Patient = 11, &sim.Patient{}
			atBedside(t, false, c.options, nil, func(b *bedside) {
				b.wait(20 * time.Second)
				c.then(b)
				b.wait(2 * time.Minute)
				before := 0
				for _, n := range b.got {
					before += n
				}
				b.wait(20 * time.Second)
				after := 0
				for _, n := range b.got {
					after += n
				}
				if after-before < 100 {
					t.Errorf("%d values in 20 s; %s", after-before, b.session.Status().LastError)
				}
				if n := b.monitor.Counts().Associations; n < c.least {
					t.Errorf("%d associations, want %d", n, c.least)
				}
			})
		})
	}
}
