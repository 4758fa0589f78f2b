package sim_test

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers/intellivue/sim"
)

// A bed with a monitor on a serial line, until interrupted.
func ExampleMonitor() {
	line, err := sim.OpenPTY("/run/gatewaysim/bed-1")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	monitor, err := sim.New(sim.Options{
		Seed:       1,
		BedLabel:   "BED 1",
		Patient:    &sim.Patient{ID: "SIM-1", Family: "Example", Given: "Ida", Born: "19800229", Sex: sim.Female, Type: sim.Adult},
		NBPEvery:   time.Minute,
		AlarmEvery: 30 * time.Second,
		OnNumeric:  func(n sim.Numeric) { fmt.Printf("%04X %s\n", n.Physio, n.Value) },
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := monitor.ServeStream(ctx, line); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}
