package est

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func openssl(t testing.TB, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	out, err := exec.Command("openssl", args...).Output()
	if err != nil {
		var text []byte
		if exit, is := err.(*exec.ExitError); is {
			text = exit.Stderr
		}
		t.Fatalf("openssl %v: %v\n%s", args, err, text)
	}
	return out
}

// pemFile holds certificates, and perhaps their key.
func pemFile(t testing.TB, blocks ...*pem.Block) string {
	t.Helper()
	var b bytes.Buffer
	for _, block := range blocks {
		if err := pem.Encode(&b, block); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "file.pem")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func certificate(t testing.TB, name string) *pem.Block {
	return &pem.Block{Type: "CERTIFICATE", Bytes: entry(t, name).Certificate.Raw}
}

func same(t testing.TB, got []*x509.Certificate, names ...string) {
	t.Helper()
	if len(got) != len(names) {
		t.Fatalf("%d certificates, want %v", len(got), names)
	}
	for _, name := range names {
		found := false
		for _, c := range got {
			found = found || c.Equal(entry(t, name).Certificate)
		}
		if !found {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestWhatOpenSSLWritesIsRead(t *testing.T) {
	all := []string{"ecc-root", "ecc-issuing", "device"}
	file := pemFile(t, certificate(t, all[0]), certificate(t, all[1]), certificate(t, all[2]))
	der := openssl(t, "crl2pkcs7", "-nocrl", "-certfile", file, "-outform", "DER")
	for name, body := range map[string][]byte{
		"without line breaks": []byte(base64.StdEncoding.EncodeToString(der)),
		"with lines of 64":    encode(der),
		"with CR LF":          bytes.ReplaceAll(encode(der), []byte("\n"), []byte("\r\n")),
		"with breaks inside":  []byte(strings.Join(strings.Split(base64.StdEncoding.EncodeToString(der), "A"), "A \t\n")),
	} {
		got, err := ParseResponse(body)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		same(t, got, all...)
	}
}

// The answers of RFC 7030, appendices A.1 and A.3: a CA in the midst of its
// rollover, and one certificate that it issued.
func TestTheExamplesOfTheRFCAreRead(t *testing.T) {
	for file, want := range map[string][]string{
		"rfc7030-cacerts.b64": {
			"CN=estExampleCA OwO 9a58de75193b7a9c", "CN=estExampleCA NwO 1", "CN=estExampleCA OwN 2", "CN=estExampleCA NwN e9ae9dc39a33b211"},
		"rfc7030-simpleenroll.b64": {"CN=demostep4 1368141352 15"},
	} {
		body, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		all, err := ParseResponse(body)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		var got []string
		for _, c := range all {
			got = append(got, c.Subject.String()+" "+c.SerialNumber.Text(16))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

// A streamed message has indefinite lengths all the way down to the content,
// as Java's libraries write them, and here a signer besides.
func TestIndefiniteLengthsAreRead(t *testing.T) {
	key, err := x509.MarshalPKCS8PrivateKey(entry(t, "device").Key)
	if err != nil {
		t.Fatal(err)
	}
	signer := pemFile(t, certificate(t, "device"), &pem.Block{Type: "PRIVATE KEY", Bytes: key})
	der := openssl(t, "cms", "-sign", "-stream", "-nodetach", "-binary", "-outform", "DER", "-signer", signer,
		"-certfile", pemFile(t, certificate(t, "ecc-issuing")), "-in", signer)
	if der[1] != 0x80 {
		t.Fatalf("openssl wrote the length %#x, not an indefinite one", der[1])
	}
	got, err := parseCertsOnly(der)
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, "ecc-issuing", "device")
}

// What we write in tests has to be what openssl reads, or the tests prove little.
func TestOpenSSLReadsTheTestsMessages(t *testing.T) {
	file := pemFile(t, &pem.Block{Type: "PKCS7", Bytes: certsOnly(t, entry(t, "ecc-root").Certificate, entry(t, "device").Certificate)})
	if n := strings.Count(string(openssl(t, "pkcs7", "-in", file, "-print_certs")), "BEGIN CERTIFICATE"); n != 2 {
		t.Errorf("openssl found %d certificates", n)
	}
}

func TestMessagesThatAreRefused(t *testing.T) {
	root := entry(t, "ecc-root").Certificate
	good := certsOnly(t, root)
	swap := func(old, new string) []byte { return bytes.Replace(good, []byte(old), []byte(new), 1) }
	many := make([]*x509.Certificate, maxCertificates+1)
	for i := range many {
		many[i] = root
	}
	deep := bytes.Repeat([]byte{0x30, 0x80}, 100_000)
	for _, c := range []struct {
		name, want string
		der        []byte
	}{
		{"nothing", "in the middle", nil},
		{"one byte", "in the middle", []byte{0x30}},
		{"half of it", "in the middle", good[:len(good)/2]},
		{"something behind it", "follow it", append(bytes.Clone(good), 0)},
		{"enveloped data", "content type is not 1.2.840.113549.1.7.2", swap("\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02", "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03")},
		{"content of another kind", "content type is not 1.2.840.113549.1.7.1", swap("\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01", "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x05")},
		{"no certificates", "no certificate", certsOnly(t)},
		{"too many certificates", "more than 32", certsOnly(t, many...)},
		{"a certificate that is none", "certificate 1", certsOnly(t, &x509.Certificate{Raw: []byte{0x30, 0x00}})},
		{"an attribute certificate", "certificate 1: a tag 0xa2", certsOnly(t, &x509.Certificate{Raw: []byte{0xa2, 0x00}})},
		{"a long tag", "more than one byte", []byte{0x3f, 0x81, 0x00, 0x00}},
		{"a primitive without a length", "without a length", []byte{0x06, 0x80, 0x00, 0x00}},
		{"a length of five bytes", "in the middle", []byte{0x30, 0x85, 1, 0, 0, 0, 0}},
		{"a length of 4 GiB", "in the middle", []byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff}},
		{"a hundred thousand levels", "nest more than 16 deep", deep},
		{"an end that never comes", "in the middle", []byte{0x30, 0x80, 0x02, 0x01, 0x01}},
		{"a set in place of a sequence", "tag 0x31", []byte{0x31, 0x00}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if all, err := parseCertsOnly(c.der); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%d certificates, %v, without %q", len(all), err, c.want)
			}
		})
	}
}

// FuzzResponse holds the reader to openssl's form: whatever it takes has only
// certificates that are in the message, byte by byte.
func FuzzResponse(f *testing.F) {
	f.Add(encode(certsOnly(f, entry(f, "ecc-root").Certificate, entry(f, "device").Certificate)))
	f.Add(encode([]byte{0x30, 0x80, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02, 0xa0, 0x80, 0x30, 0x80, 0, 0, 0, 0, 0, 0}))
	f.Add([]byte("MAA="))
	example, err := os.ReadFile(filepath.Join("testdata", "rfc7030-simpleenroll.b64"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	f.Add([]byte("MEEGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBYGCSqGSIb3DQEJDjEJ\nBgcrBgEBAQEWBggqhkjOPQQDAw=="))
	f.Fuzz(func(t *testing.T, body []byte) {
		if attributes, err := parseAttributes(body); err == nil && len(attributes) > maxAttributes {
			t.Errorf("%d attributes", len(attributes))
		}
		all, err := ParseResponse(body)
		if err != nil {
			return
		}
		der, err := decode(body)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 0 || len(all) > maxCertificates {
			t.Errorf("%d certificates", len(all))
		}
		for _, c := range all {
			if !bytes.Contains(der, c.Raw) {
				t.Error("a certificate that is not in the message")
			}
		}
	})
}

func FuzzRetryAfter(f *testing.F) {
	for _, seed := range []string{"", "0", "30", "99999999999999999999", "Sun, 06 Nov 1994 08:49:37 GMT", "-1", "1.5"} {
		f.Add(seed)
	}
	now := entry(f, "device").NotBefore
	f.Fuzz(func(t *testing.T, text string) {
		a := answer{status: 202, header: map[string][]string{"Retry-After": {text}}, body: []byte(text)}
		pending, is := a.refusal(now).(*Pending)
		if !is || pending.After < 1e9 || pending.After > maxRetry {
			t.Errorf("%q: %v", text, pending)
		}
		for _, r := range pending.Text {
			if r < 0x20 || r > 0x7e {
				t.Errorf("%q is printed as %q", text, pending.Text)
			}
		}
	})
}
