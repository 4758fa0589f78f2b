package tlsinterop

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/revocation/fetch"
	"github.com/bedside-gateway/gatewayd/southbound"
)

// The whole server of Interface A, as the daemon runs it: foreign devices
// deliver through it, and each message comes out with the device's name.
func TestForeignDevicesDeliverThroughInterfaceA_A1(t *testing.T) {
	w := needWard(t)
	fetcher := fetch.New(fetch.Options{})
	t.Cleanup(fetcher.Close)
	type taken struct{ device, message string }
	sink := make(chan taken, 1)
	server := must(southbound.New(southbound.Options{
		Roots: w.pki.Roots(), Fetcher: fetcher, LeafOnly13: true,
		Authorised: func(name string) bool { return name == w.pki.Options.Device.String() },
		Identities: w.identities(t),
		Sink: func(_ context.Context, device string, message []byte) error {
			sink <- taken{device, string(message)}
			return nil
		},
	}))(t)
	t.Cleanup(server.Close)
	for _, name := range platforms { // JSSE and wolfSSL demand what a server that just began may not have yet
		k := must(fetch.NewKeeper(fetcher, must(w.pki.Chain(name))(t)))(t)
		t.Cleanup(k.Close)
		if err := k.Fetch(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for _, p := range callers {
		for _, version := range versions {
			for _, scheme := range schemes {
				t.Run(p.name+" "+version.name+" "+string(scheme), func(t *testing.T) {
					p.need(t)
					said := p.call(t, w, job{name: named(scheme, "device"), version: version.name, port: port})
					if !strings.HasPrefix(said, "done") || !strings.Contains(said, "MSA|CA|"+controlID) {
						t.Fatalf("the peer says: %s", said)
					}
					select {
					case got := <-sink:
						if got.message != message || got.device != w.pki.Options.Device.String() {
							t.Errorf("from %s came %q", got.device, got.message)
						}
					case <-time.After(patience):
						t.Error("acknowledged, and never delivered")
					}
				})
			}
		}
	}
	t.Run("a revoked device is refused", func(t *testing.T) {
		needOpenSSL(t)
		said := openSSLCall(t, w, job{name: "device-revoked", version: "1.2", port: port})
		if strings.HasPrefix(said, "done") || !strings.Contains(said, "certificate revoked") {
			t.Errorf("the peer says: %s", said)
		}
	})
}
