package fetch

import (
	"bufio"
	"context"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/revocation"
)

// opensslResponder runs `openssl ocsp` for one CA and returns its address. It
// is a responder that this project did not write.
func opensslResponder(t *testing.T, p *pki.PKI, dir, ca string) string {
	t.Helper()
	e, err := p.Find(ca)
	must(t, err)
	index := filepath.Join(dir, ca+".index")
	must(t, os.WriteFile(index, []byte(indexOf(p, ca)), 0o600))
	file := filepath.Join(dir, ca+".single")
	must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.Certificate.Raw}), 0o600))
	cmd := exec.CommandContext(t.Context(), "openssl", "ocsp", "-index", index, "-port", "0", "-CA", file,
		"-rsigner", file, "-rkey", filepath.Join(dir, e.KeyFile), "-nmin", "60")
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = cmd.Stdout
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	lines := bufio.NewScanner(out)
	said := ""
	for lines.Scan() {
		said += lines.Text() + "\n"
		if m := regexp.MustCompile(`ACCEPT .*?:(\d+)`).FindStringSubmatch(lines.Text()); m != nil {
			go func() { // it writes of each request
				for lines.Scan() {
				}
			}()
			return "127.0.0.1:" + m[1]
		}
	}
	t.Fatalf("openssl ocsp does not listen:\n%s", said)
	return ""
}

// indexOf is the database of `openssl ca`: all certificates of a CA but the
// one with "not-yet" in its name, which it does not know.
func indexOf(p *pki.PKI, ca string) string {
	var b strings.Builder
	const layout = "060102150405Z"
	for _, e := range p.Entries {
		if e.Issuer != ca || strings.Contains(e.Name, "not-yet") {
			continue
		}
		serial := strings.ToUpper(e.Serial)
		if len(serial)%2 == 1 {
			serial = "0" + serial
		}
		state, revoked := "V", ""
		if strings.HasSuffix(e.Name, "-revoked") && !strings.Contains(strings.TrimPrefix(e.Name, "ecc-"), "-issuing-") {
			state, revoked = "R", e.NotBefore.UTC().Format(layout)+",keyCompromise"
		}
		fmt.Fprintf(&b, "%s\t%s\t%s\t%s\tunknown\t/CN=%s\n", state, e.NotAfter.UTC().Format(layout), revoked, serial, e.Name)
	}
	return b.String()
}

// Responses of `openssl ocsp`, asked by GET and by POST.
func TestOpenSSLAsTheResponder(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed: ", err)
	}
	p, err := pki.New(pki.Options{OCSPURL: "http://{ca}/"})
	must(t, err)
	dir := t.TempDir()
	must(t, p.Write(dir))
	addresses := map[string]string{}
	for _, ca := range []string{"ecc-root", "ecc-issuing", "ecc-issuing-revoked"} {
		addresses[ca+":80"] = opensslResponder(t, p, dir, ca)
	}
	for _, onlyPOST := range []bool{false, true} {
		methods := map[string]int{}
		client := &http.Client{Transport: counting{methods: methods, only: onlyPOST, next: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, name string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", addresses[name])
			},
		}}}
		f := New(Options{Client: client, Timeout: 20 * time.Second})
		t.Cleanup(f.Close)
		for _, test := range []struct {
			device string
			want   [2]revocation.Kind
		}{
			{"device", [2]revocation.Kind{revocation.Good, revocation.Good}},
			{"device-revoked", [2]revocation.Kind{revocation.Revoked, revocation.Good}},
			{"device-issuing-revoked", [2]revocation.Kind{revocation.Good, revocation.Revoked}},
			{"device-not-yet-valid", [2]revocation.Kind{revocation.Unknown, revocation.Good}},
		} {
			c, err := p.Chain(test.device)
			must(t, err)
			for i := range 2 { // one at a time: this responder takes one connection at a time
				_, _ = f.OCSP(t.Context(), c[i], c[i+1]) // the verdict tells
			}
			if v := f.Judge(t.Context(), c, nil); [2]revocation.Kind{v[0].Kind, v[1].Kind} != test.want {
				t.Errorf("only POST %v, %s: %v", onlyPOST, test.device, v)
			}
		}
		if onlyPOST && methods["POST"] == 0 || !onlyPOST && methods["GET"] == 0 {
			t.Errorf("%v", methods)
		}
	}
}

// counting refuses GET where only is set, as an old responder does.
type counting struct {
	methods map[string]int
	only    bool
	next    http.RoundTripper
}

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	if c.only && r.Method == http.MethodGet {
		return fixed{status: http.StatusMethodNotAllowed}.RoundTrip(r)
	}
	c.methods[r.Method]++
	return c.next.RoundTrip(r)
}
