// Package intellivue speaks Philips IntelliVue Data Export.
package intellivue

import (
	"errors"

	"github.com/bedside-gateway/gatewayd/drivers"
)

// Driver is the protocol of Philips IntelliVue monitors.
type Driver struct{}

// New is the driver.
func New() drivers.Driver { return Driver{} }

// Info tells how to reach a monitor.
func (Driver) Info() drivers.Info { return drivers.Info{Name: "intellivue"} }

// Identify judges received bytes.
func (Driver) Identify([]byte) drivers.Match { return drivers.NoMatch }

// Permit lets nothing pass yet.
func (Driver) Permit([]byte) error { return errors.New("not permitted") }

// New makes a machine.
func (Driver) New(drivers.Settings, drivers.Host) (drivers.Machine, error) {
	return nil, errors.New("the driver is not complete")
}
