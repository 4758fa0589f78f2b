package tunnel

import (
	"bytes"
	"encoding/pem"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A client is OpenSSL's s_client as a device.
type client struct {
	t    *testing.T
	dir  string
	name string
}

func newClient(t *testing.T, f *far) *client {
	t.Helper()
	name, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed: ", err)
	}
	dir := t.TempDir()
	must(t, f.Write(dir))
	return &client{t, dir, name}
}

// talk sends a line and waits for its echo. It gives all that s_client says.
func (c *client) talk(address string, args ...string) (said string, err error) {
	c.t.Helper()
	file := func(name string) string { return filepath.Join(c.dir, name) }
	all := append([]string{"s_client", "-connect", address, "-servername", "platform.test", "-CAfile", file("roots.pem"), "-verify_return_error", "-showcerts",
		"-cert", file("device.pem"), "-key", file("device.key"), "-cert_chain", file("ecc-issuing.pem")}, args...)
	cmd := exec.Command(c.name, all...)
	in, err := cmd.StdinPipe()
	must(c.t, err)
	out, err := cmd.StdoutPipe()
	must(c.t, err)
	cmd.Stderr = cmd.Stdout
	must(c.t, cmd.Start())
	stuck := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer stuck.Stop()
	_, _ = io.WriteString(in, "are you there\n") // where it is refused it does not read
	var text bytes.Buffer
	buffer := make([]byte, 4<<10)
	for !bytes.Contains(text.Bytes(), []byte("are you there\n")) && err == nil {
		var n int
		n, err = out.Read(buffer)
		text.Write(buffer[:n])
	}
	echoed := err == nil
	_ = in.Close()
	rest, _ := io.ReadAll(out)
	_ = cmd.Wait() // s_client's status says nothing of an echo
	text.Write(rest)
	if !echoed {
		err = errors.New("no echo")
	}
	return text.String(), err
}

func TestOpenSSLAsTheDevice(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	c := newClient(t, f)
	leaf, err := f.Find("platform")
	must(t, err)
	pemLeaf := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate.Raw}))
	for _, test := range []struct {
		name   string
		args   []string
		resume bool // that the tunnel allows it
		rule   string
	}{
		{"TLS 1.2", []string{"-tls1_2"}, false, ""},
		{"TLS 1.3", []string{"-tls1_3"}, false, ""},
		{"TLS 1.3 with a HelloRetryRequest", []string{"-tls1_3", "-groups", "X448:P-256"}, false, ""},
		{"TLS 1.2, asking for a staple", []string{"-tls1_2", "-status"}, false, ""},
		{"TLS 1.2, a suite that the platform does not have", []string{"-tls1_2", "-cipher", "AES256-GCM-SHA384"}, false, "ended by platform"},
		{"TLS 1.2 resumed", []string{"-tls1_2", "-sess_in", "tls12"}, false, "resumption"},
		{"TLS 1.2 resumed, where that is allowed", []string{"-tls1_2", "-sess_in", "tls12"}, true, ""},
		{"TLS 1.3 resumed", []string{"-tls1_3", "-sess_in", "tls13"}, false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWard(t, f, func(o *Options) { o.Config.Listeners[0].AllowResumption = test.resume })
			args := test.args
			if i := len(args) - 1; slices.Contains(args, "-sess_in") {
				session := filepath.Join(t.TempDir(), args[i])
				if said, err := c.talk(w.address(), append(args[:1:1], "-sess_out", session)...); err != nil {
					t.Fatalf("the session to resume: %v\n%s", err, said)
				}
				w.event(Closed)
				args = append(args[:i:i], session)
			}
			said, err := c.talk(w.address(), args...)
			if (err == nil) != (test.rule == "") {
				t.Fatalf("%v\n%s\n%s", err, said, w.log)
			}
			if test.rule != "" {
				if e := w.event(RefusedOne); e.Rule != test.rule {
					t.Errorf("%s: %v", e.Rule, e.Err)
				}
				return
			}
			resumed := strings.Contains(said, "Reused, ")
			if wants := strings.Contains(test.name, "resumed"); resumed != wants {
				t.Errorf("resumed %v, want %v\n%s", resumed, wants, said)
			}
			if !resumed && !strings.Contains(said, pemLeaf) {
				t.Errorf("it does not see the platform's certificate\n%s", said)
			}
			w.until("its end", func(s Status) bool { return s.Ended["closed"] > 0 })
		})
	}
}
