package port_test

import (
	"errors"
	"fmt"
	"strings"

	"github.com/bedside-gateway/gatewayd/drivers/port"
)

func ExampleParseSpec() {
	for _, s := range []string{"/dev/serial/by-path/pci-0000:00:14.0-usb-0:2:1.0-port0", "udp://10.0.42.9", "ttyUSB0"} {
		spec, err := port.ParseSpec(s)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(spec.DefaultPort(24105))
	}
	// Output:
	// /dev/serial/by-path/pci-0000:00:14.0-usb-0:2:1.0-port0
	// udp://10.0.42.9:24105
	// device "ttyUSB0": write the whole path of a serial port, such as /dev/serial/by-path/…, or tcp://host:port or udp://host
}

func ExampleReadRecording() {
	file := `# gatewayd recording 1
2026-11-24T21:08:25Z > 2 0d0a
2026-11-24T21:08:25.25Z < 3 39380d
2026-11-24T21:08:26Z < 3 39
`
	for r, err := range port.ReadRecording(strings.NewReader(file), port.ReadOptions{}) {
		if errors.Is(err, port.ErrTorn) {
			fmt.Println("warning:", err)
			continue
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%v %c %q\n", r.Offset, r.Direction, r.Data)
	}
	// Output:
	// 0s > "\r\n"
	// 250ms < "98\r"
	// warning: a part of the recording is missing: the last record before a power cut: line 4: it says 3 bytes and has 1
}
