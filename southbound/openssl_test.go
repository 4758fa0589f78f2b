package southbound

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bedside-gateway/gatewayd/mllp"
	"github.com/bedside-gateway/gatewayd/pcd"
	"github.com/bedside-gateway/gatewayd/tlspolicy"
)

// A peer is openssl s_client, a TLS client that this project did not write.
type peer struct {
	t    *testing.T
	dir  string
	path string
}

func newPeer(t *testing.T, w *ward) *peer {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed: ", err)
	}
	p := &peer{t: t, dir: t.TempDir(), path: path}
	must(t, w.Write(p.dir))
	for _, name := range []string{"ecc-issuing", "rsa-issuing", "ecc-root", "rsa-root"} {
		if e, err := w.Find(name); err == nil {
			must(t, os.WriteFile(p.file(name+".ca"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.Certificate.Raw}), 0o600))
		}
	}
	return p
}

func (p *peer) file(name string) string { return filepath.Join(p.dir, name) }

// talk connects, sends the input, and reads until there is one MLLP block, or
// until the end. Everything that openssl printed comes back.
func (p *peer) talk(w *ward, device, input string, args ...string) (block, said string) {
	p.t.Helper()
	scheme := "ecc"
	if strings.HasPrefix(device, "rsa") {
		scheme = "rsa"
	}
	args = append([]string{"s_client", "-connect", w.address, "-servername", "platform.test", "-CAfile", p.file("roots.pem"), "-verify_return_error", "-nocommands", "-ign_eof"}, args...)
	if device != "" {
		args = append(args, "-cert", p.file(device+".pem"), "-key", p.file(device+".key"), "-cert_chain", p.file(scheme+"-issuing.ca"))
	}
	cmd := exec.CommandContext(p.t.Context(), p.path, args...)
	in, err := cmd.StdinPipe()
	must(p.t, err)
	out, err := cmd.StdoutPipe()
	must(p.t, err)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	must(p.t, cmd.Start())
	_, _ = io.WriteString(in, input) // a refused one may be gone already
	var text bytes.Buffer
	r := bufio.NewReader(io.TeeReader(out, &text))
	if _, err := r.ReadBytes(0x0B); err == nil {
		b, err := r.ReadBytes(0x1C)
		if err == nil {
			block = string(bytes.TrimSuffix(b, []byte{0x1C}))
		}
		_ = cmd.Process.Kill() // it would wait for more
	}
	_, _ = io.Copy(io.Discard, r)
	_ = in.Close()
	_ = cmd.Wait() // its exit status says less than its words
	return block, text.String() + stderr.String()
}

func framed(t *testing.T, m string) string {
	t.Helper()
	b, err := mllp.AppendBlock(nil, []byte(m))
	must(t, err)
	return string(b)
}

// opensslNames are the suites of A3 in the specification's order.
var opensslNames = []string{
	"ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384", "DHE-RSA-AES256-GCM-SHA384",
	"ECDHE-ECDSA-AES128-SHA256", "DHE-RSA-AES128-SHA256", "ECDHE-ECDSA-AES256-SHA", "DHE-RSA-AES256-SHA256",
}

func skipShort(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("RSA keys take seconds to make")
	}
}

func TestOpenSSLDeliversOverEverySuite_A3_A5(t *testing.T) {
	skipShort(t)
	w := newWard(t, nil)
	p := newPeer(t, w)
	run := func(name, device string, args ...string) {
		t.Run(name+" "+device, func(t *testing.T) {
			q := *p
			q.t = t
			block, said := q.talk(w, device, framed(t, message("S1", "AL", "NE")), args...)
			a, err := pcd.ParseAck([]byte(block))
			if err != nil || a.Code != "CA" || a.ControlID != "S1" {
				t.Fatalf("%+v, %v\n%s\n%s", a, err, said, w.log)
			}
			if name != "TLS 1.3" && !strings.Contains(said, "Cipher is "+name) {
				t.Errorf("another suite:\n%s", said)
			}
			if got := <-w.got; got.message != message("S1", "AL", "NE") {
				t.Errorf("%q", got)
			}
		})
	}
	for i, suite := range opensslNames {
		run(suite, []string{"device", "rsa-device"}[i%2], "-tls1_2", "-cipher", suite+":@SECLEVEL=0")
	}
	run("TLS 1.3", "device", "-tls1_3")
	run("TLS 1.3", "rsa-device", "-tls1_3")
	if n := w.Status().CBC; n != 4 || !strings.Contains(w.log.String(), "GCM mode") {
		t.Errorf("%d connections in CBC mode are counted", n)
	}
}

// For every i, a client that offers the suites from i on, in reverse, gets i.
func TestOpenSSLGetsTheFirstSuiteOfOurOrder_A3(t *testing.T) {
	skipShort(t)
	w := newWard(t, nil)
	p := newPeer(t, w)
	for i, want := range opensslNames {
		offer := slices.Clone(opensslNames[i:])
		slices.Reverse(offer)
		_, said := p.talk(w, "device", framed(t, message("S1", "AL", "NE")), "-tls1_2", "-cipher", strings.Join(offer, ":"))
		if !strings.Contains(said, "Cipher is "+want) {
			t.Errorf("offered %v, want %s:\n%s", offer, want, said)
		}
	}
}

func TestOpenSSLSeesOurChainAndItsStaple_A4_A7_A10(t *testing.T) {
	w := newWard(t, nil)
	p := newPeer(t, w)
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		_, said := p.talk(w, "device", framed(t, message("S1", "AL", "NE")), version, "-status", "-showcerts")
		for _, word := range []string{"OCSP Response Status: successful", "Cert Status: good", "Verify return code: 0 (ok)", "Simulated issuing CA (ECC)"} {
			if !strings.Contains(said, word) {
				t.Errorf("%s: no %q:\n%s", version, word, said)
			}
		}
		if n := strings.Count(said, "BEGIN CERTIFICATE"); n < 2 {
			t.Errorf("%s: %d certificates", version, n)
		}
	}
}

// Each row is an openssl that must not get in, what it says of our alert, and our rule.
func TestOpenSSLIsRefusedWithAReason(t *testing.T) {
	w := newWard(t, nil)
	p := newPeer(t, w)
	for _, test := range []struct {
		name, device, version, word, rule string
	}{
		{"no certificate", "", "-tls1_2", "alert", "TLS"},
		{"no certificate", "", "-tls1_3", "certificate required", "TLS"},
		{"revoked", "device-revoked", "-tls1_2", "certificate revoked", "A9"},
		{"revoked", "device-revoked", "-tls1_3", "certificate revoked", "A9"},
		{"not authorised", "device-wrong-name", "-tls1_2", "access denied", "A8"},
		{"not authorised", "device-wrong-name", "-tls1_3", "access denied", "A8"},
		{"expired", "device-expired", "-tls1_3", "certificate expired", "A8"},
		{"foreign", "device-foreign", "-tls1_3", "unknown ca", "A8"},
		{"TLS 1.1", "device", "-tls1_1", "protocol version", "TLS"},
		{"a suite that is not of the policy", "device", "-tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305", "handshake failure", "TLS"},
	} {
		t.Run(test.name+" "+test.version, func(t *testing.T) {
			q := *p
			q.t = t
			args := strings.Fields(test.version)
			if test.name == "TLS 1.1" {
				args = append(args, "-cipher", "ALL:@SECLEVEL=0")
			}
			before := w.Status().Refused[test.rule]
			block, said := q.talk(w, test.device, framed(t, message("S1", "AL", "NE")), args...)
			if block != "" || !strings.Contains(said, test.word) {
				t.Errorf("block %q, no %q:\n%s", block, test.word, said)
			}
			w.until("refusal "+test.rule, func(s Status) bool { return s.Refused[test.rule] > before })
			if len(w.got) != 0 {
				t.Error("a message came through")
			}
		})
	}
}

func TestOpenSSLSendsWhatCannotBeAnswered(t *testing.T) {
	w := newWard(t, nil)
	p := newPeer(t, w)
	block, said := p.talk(w, "device", "\x0bhello\x1c\r")
	if block != "" || w.Status().Rejected != 1 {
		t.Errorf("%q, %+v\n%s", block, w.Status(), said)
	}
}

// BenchmarkHandshake is a whole connection of a device that is known already:
// handshake, verdicts from memory, close.
func BenchmarkHandshake(b *testing.B) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		b.Run(strings.ReplaceAll(tls.VersionName(version), " ", ""), func(b *testing.B) {
			w := newWard(b, nil)
			id, err := w.Identity("device")
			must(b, err)
			c := &tls.Config{InsecureSkipVerify: true, MaxVersion: version, CurvePreferences: tlspolicy.CMIIST().Curves,
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &id, nil }}
			ack := make([]byte, 1024)
			hello := []byte(fmt.Sprintf("\x0b%s\x1c\r", message("B", "AL", "NE")))
			go func() {
				for range w.got {
				}
			}()
			b.Cleanup(sync.OnceFunc(func() { _ = w.stop(); close(w.got) }))
			for b.Loop() {
				conn, err := tls.Dial("tcp", w.address, c)
				must(b, err)
				_, err = conn.Write(hello)
				must(b, err)
				_, err = conn.Read(ack)
				must(b, err)
				_ = conn.Close()
			}
		})
	}
}
