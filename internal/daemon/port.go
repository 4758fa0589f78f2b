package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/observation"
	"github.com/bedside-gateway/gatewayd/pcd"
)

// A portUnit is a running port: its session, and a lane to each destination.
type portUnit struct {
	config  config.Port // as it is now; under the lock of the daemon
	session *drivers.Session
	log     *slog.Logger
	panics  atomic.Uint64

	recorder *port.Recorder // of the session's goroutine

	// lanes change at a reload, while the session goes on.
	lanes atomic.Pointer[[]*lane]
	gone  laneCounts // of lanes that a reload removed, so that no counter falls; under the lock of the daemon

	cancel context.CancelFunc
	done   chan struct{}
}

func (d *Daemon) newPort(p config.Port) (*portUnit, error) {
	u := &portUnit{config: p, log: d.log.With("port", p.Name), done: make(chan struct{})}
	u.lanes.Store(&[]*lane{})
	driver, err := d.options.Drivers.Lookup(p.Driver)
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", p.Name, err)
	}
	spec, err := port.ParseSpec(p.Device)
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", p.Name, err)
	}
	spec = spec.DefaultPort(driver.Info().UDPPort)
	var lines []port.Line
	if p.Line != (port.Line{}) {
		lines = []port.Line{p.Line}
	}
	u.session, err = drivers.NewSession(drivers.SessionConfig{
		Name: p.Name, Driver: driver, Lines: lines, Log: d.log, Sink: u.sink, Known: d.options.Drivers,
		Settings: drivers.Settings{ListenOnly: p.ListenOnly, Options: p.Options}, Timing: d.options.Timing,
		Open: u.opener(d, spec, p.Record),
	})
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", p.Name, err)
	}
	return u, nil
}

// maxRecording is where a recording ends that nobody has ended, in bytes.
const maxRecording = 256 << 20

// opener opens the port, recorded where the configuration wants it. The session
// opens one at a time, from one goroutine.
func (u *portUnit) opener(d *Daemon, spec port.Spec, record string) func(context.Context, port.Line) (port.Port, error) {
	return func(ctx context.Context, line port.Line) (port.Port, error) {
		opened, err := d.options.Open(ctx, spec, line)
		if err != nil || record == "" {
			return opened, err
		}
		if u.recorder == nil {
			u.recorder, err = port.OpenRecording(record, maxRecording, d.options.Now)
		}
		if err != nil {
			u.log.Error("the port is not recorded", "error", err, "next", "correct or remove record in [[port]]")
			return opened, nil
		}
		return u.recorder.Wrap(opened), nil
	}
}

// endRecording closes the recording behind the session.
func (u *portUnit) endRecording() {
	if u.recorder == nil {
		return
	}
	if err := u.recorder.Close(); err != nil {
		u.log.Error("the end of the recording may be missing", "error", err)
	}
	u.recorder = nil
}

// sink hands a report to every lane. A panic in there must neither end the
// session nor keep the report from the other lanes.
func (u *portUnit) sink(r *observation.Report) {
	for _, l := range *u.lanes.Load() {
		u.contain(func() { l.add(r) })
	}
}

// contain runs f and turns a panic into a count and a line in the log. The value
// of the panic is not logged, for it could hold what the device sent.
func (u *portUnit) contain(f func()) (ok bool) {
	defer func() {
		if v := recover(); v != nil {
			u.panics.Add(1)
			u.log.Error("a fault of the program was contained to this port", "kind", panicKind(v), "stack", string(debug.Stack()),
				"next", "report it with this log entry")
		}
	}()
	f()
	return true
}

func panicKind(v any) string {
	if e, ok := v.(runtime.Error); ok {
		return e.Error()
	}
	return fmt.Sprintf("%T", v)
}

// start runs the session until stop, or the end of ctx.
func (u *portUnit) start(ctx context.Context) {
	ctx, u.cancel = context.WithCancel(ctx)
	go func() {
		defer close(u.done)
		defer u.endRecording()
		for ctx.Err() == nil {
			u.contain(func() { _ = u.session.Run(ctx) })
			pause(ctx, time.Second)
		}
	}()
}

func (u *portUnit) stop()                  { u.cancel() }
func (u *portUnit) ended() <-chan struct{} { return u.done }

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// startLane runs a lane. After a panic it goes on with the same snapshot: what
// the snapshot could not say is counted there and dropped.
func (u *portUnit) startLane(l *lane, last context.Context) {
	go func() {
		defer close(l.done)
		for !u.contain(func() { l.run(last) }) && l.quit.Err() == nil {
			pause(l.quit, time.Second)
		}
	}()
}

// snapshotOptions are what a port and a destination make of a message together.
func snapshotOptions(g *config.Gateway, p *config.Port, t *config.Destination) pcd.Options {
	return pcd.Options{
		Sender: pcd.Sender{Application: g.Name, EUI64: g.EUI64, Facility: g.Facility,
			ReceivingApplication: t.ReceivingApp, ReceivingFacility: t.ReceivingFacility,
			AcceptAck: t.AcceptAck, ApplicationAck: t.ApplicationAck, ProcessingID: "P"},
		Location: pcd.Location(p.Location), DeviceID: p.DeviceEUI64, Interval: t.Interval, Include: t.Include, Exclude: t.Exclude,
		Waves: t.Waveforms, AllowSimulated: p.AllowSimulated, Patient: patientPolicy(t.Patient),
		AssigningAuthority: t.AssigningAuthority, Zone: g.Zone, DeviceZone: p.DeviceZone,
	}
}

func patientPolicy(s string) pcd.PatientPolicy {
	switch s {
	case "unknown":
		return pcd.PatientUnknown
	case "omit":
		return pcd.PatientOmit
	}
	return pcd.PatientDevice
}

// sameOptions reports whether a lane with the one goes on as a lane with the other.
func sameOptions(a, b pcd.Options) bool {
	a.IDs, b.IDs = nil, nil
	return reflect.DeepEqual(a, b)
}
