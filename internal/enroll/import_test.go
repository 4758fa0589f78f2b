package enroll

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/config"
	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/keystore"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
)

func p256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

func pkcs8(t testing.TB, key crypto.PrivateKey) []byte {
	t.Helper()
	return inPEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key))(t))
}

// certify is a chain for a key that a PKI made.
func (b *box) certify(key crypto.Signer) []*x509.Certificate {
	b.t.Helper()
	return must(b.pki.IssueDevice("ecc-issuing", key.Public(), pki.DefaultDevice, b.now, pki.DefaultLifetime))(b.t)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestAKeyThatAPKIMadeIsImported(t *testing.T) {
	b := newBox(t, tpm.P256)
	ecc, p384, rsa2048 := p256(t), must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t), must(rsa.GenerateKey(rand.Reader, 2048))(t)
	parameters := []byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n") // as openssl ecparam writes them
	wrapped := func(text []byte) []byte { return must(Wrap(must(b.TPM.Parent(b.ctx()))(t), text))(t) }
	for name, c := range map[string]struct {
		key   crypto.Signer
		text  []byte
		piped bool
		slot  string // that its certificate is in; "" where there is none
	}{
		"EC in PKCS #8":                 {ecc, pkcs8(t, ecc), true, ""},
		"EC in PKCS #8 with its chain":  {ecc, join(pkcs8(t, ecc), encode(b.certify(ecc))), true, keystore.Current},
		"EC in SEC 1 behind its chain":  {ecc, join(encode(reversed(b.certify(ecc))), parameters, inPEM("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ecc))(t))), true, keystore.Current},
		"P-384":                         {p384, join(pkcs8(t, p384), encode(b.certify(p384))), true, keystore.Current},
		"RSA in PKCS #1 with its chain": {rsa2048, join(inPEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsa2048)), pkcs7(t, b.certify(rsa2048))), true, keystore.Current},
		"RSA in PKCS #8":                {rsa2048, pkcs8(t, rsa2048), true, ""},
		"wrapped, from a file":          {ecc, wrapped(pkcs8(t, ecc)), false, ""},
		"wrapped with its chain":        {ecc, wrapped(join(encode(reversed(b.certify(ecc))), pkcs8(t, ecc))), false, keystore.Current},
		"wrapped RSA":                   {rsa2048, join(wrapped(pkcs8(t, rsa2048)), encode(b.certify(rsa2048))), false, keystore.Current},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := b.Reset(); err != nil {
				t.Fatal(err)
			}
			kept := bytes.Clone(c.text)
			o, err := b.Import(b.ctx(), c.text, c.piped)
			if err != nil || !o.Changed || o.Next == "" {
				t.Fatalf("%+v %v", o, err)
			}
			if c.piped && bytes.Equal(kept, c.text) {
				t.Error("the text of the clear key was not wiped")
			}
			s := b.slots()
			slot := s.Current
			if c.slot == "" {
				slot = s.Next
			}
			if slot == nil || keystore.Mark(slot.Public) != keystore.Mark(c.key.Public()) || (slot.Chain != nil) != (c.slot != "") {
				t.Fatalf("the slots are %+v", s)
			}
			if csr := must(parseRequest(slot.Request))(t); csr.CheckSignature() != nil || csr.Subject.CommonName != pki.DefaultDevice.String() {
				t.Errorf("the request is for %s", csr.Subject)
			}
			if err := b.try(b.ctx(), slot); err != nil {
				t.Fatal(err)
			}
			if c.slot != "" {
				b.signs(slot)
			}
			if err := b.unchanged(func() (Outcome, error) { return b.Import(b.ctx(), kept, c.piped) }); err != nil {
				t.Error("the same again: ", err)
			}
			b.holdsNoneOf(c.key)
		})
	}
}

// secrets are the numbers that are a key, as they lie in files and in memory.
func secrets(t testing.TB, key crypto.Signer) (all [][]byte) {
	t.Helper()
	var numbers [][]byte
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		numbers = [][]byte{must(k.Bytes())(t)}
	case *rsa.PrivateKey:
		numbers = [][]byte{k.D.Bytes(), k.Primes[0].Bytes(), k.Primes[1].Bytes()}
	}
	for _, n := range numbers {
		back := slices.Clone(n) // as big integers lie in memory
		slices.Reverse(back)
		all = append(all, n, back)
	}
	return all
}

// holdsNoneOf looks at every file below the state folder, what reset moved aside too.
func (b *box) holdsNoneOf(key crypto.Signer) {
	b.t.Helper()
	files := 0
	err := filepath.WalkDir(b.config.Gateway.StateDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files++
		text := must(os.ReadFile(path))(b.t)
		for rest := text; ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			text = append(text, block.Bytes...)
		}
		for _, secret := range secrets(b.t, key) {
			if bytes.Contains(text, secret) {
				b.t.Errorf("%s holds the private key", path)
			}
		}
		return nil
	})
	if err != nil || files == 0 {
		b.t.Fatalf("%d files, %v", files, err)
	}
}

func TestWhatIsNoKeyForThisTPMIsRefused(t *testing.T) {
	b, other, small := newBox(t, tpm.P256), newBox(t, tpm.P256), newSmallCA(t)
	key, second := p256(t), p256(t)
	locked := &pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: []byte("sealed")}
	elsewhere := must(Wrap(must(other.TPM.Parent(b.ctx()))(t), pkcs8(t, key)))(t)
	damaged, _ := pem.Decode(must(Wrap(must(b.TPM.Parent(b.ctx()))(t), pkcs8(t, key)))(t))
	damaged.Bytes[len(damaged.Bytes)-1] ^= 1
	certified := func(change func(*x509.Certificate)) []byte {
		return join(pkcs8(t, key), encode([]*x509.Certificate{small.device(key.Public(), change), small.cert}))
	}
	refused := map[string]struct {
		text []byte
		word string
	}{
		"the certificate of another gateway": {certified(func(c *x509.Certificate) { c.Subject.CommonName = "FEDCBA9876543210" }), "platforms know this gateway as"},
		"an expired certificate": {certified(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = b.now.AddDate(0, 0, -9), b.now.AddDate(0, 0, -2)
		}), "the certificate expired on"},
		"a certificate for servers":            {certified(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "is not for TLS clients"},
		"the certificate of a CA":              {certified(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), "is that of a CA"},
		"a certificate without its issuing CA": {join(pkcs8(t, key), encode(b.certify(key)[:1])), "is missing"},

		"encrypted":                      {inPEM("ENCRYPTED PRIVATE KEY", []byte("sealed")), "the key is encrypted: decrypt it into a pipe"},
		"encrypted in the old way":       {pem.EncodeToMemory(locked), "the key is encrypted"},
		"damaged":                        {inPEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key))(t)[:50]), "the key is damaged: copy it anew"},
		"half a block":                   {pkcs8(t, key)[:100], "are damaged"},
		"two keys":                       {join(pkcs8(t, key), pkcs8(t, second)), "it holds 2 keys"},
		"a clear and a wrapped one":      {join(pkcs8(t, key), elsewhere), "it holds 2 keys"},
		"no key":                         {encode(b.certify(key)), "it holds 0 keys"},
		"nothing":                        {nil, "it holds no PEM block"},
		"the certificate of another key": {join(pkcs8(t, key), encode(b.certify(second))), "the certificates are for another key"},
		"wrapped for another TPM":        {elsewhere, string(tpm.Astray)},
		"wrapped and then damaged":       {pem.EncodeToMemory(damaged), ""},
		"what is no key":                 {inPEM("X509 CRL", []byte("list")), `it is a "X509 CRL", which is no key and no certificate`},
		"a curve that is not used":       {pkcs8(t, must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(t)), "P-256 or P-384"},
		"RSA of another length":          {pkcs8(t, must(rsa.GenerateKey(rand.Reader, 3072))(t)), "2048 bits"},
		"a damaged certificate":          {join(inPEM("CERTIFICATE", []byte("none")), pkcs8(t, key)), "PEM block 1"},
	}
	for _, state := range []struct {
		name   string
		become func() // from the one before
	}{
		{"on a new box", func() {}},
		{"where a key waits for its certificate", func() { b.init() }},
		{"where a certificate is in use", func() { b.enrolled() }},
		{"where another key waits", func() { must(b.NewKey(b.ctx()))(t) }},
		{"where a certificate waits", func() { must(b.Install(encode(b.issue())))(t) }},
	} {
		state.become()
		for name, c := range refused {
			t.Run(name+", "+state.name, func(t *testing.T) {
				err := b.unchanged(func() (Outcome, error) { return b.Import(b.ctx(), bytes.Clone(c.text), true) })
				wantError(t, err, c.word)
				for _, secret := range secrets(t, key) {
					if err != nil && strings.Contains(err.Error(), string(secret)) {
						t.Error("the error quotes the key")
					}
				}
			})
		}
	}
	clear := pkcs8(t, key)
	wantError(t, b.unchanged(func() (Outcome, error) { return b.Import(b.ctx(), clear, false) }), "the key is in the clear, in a file on this box: remove the file")
	b.holdsNoneOf(key)
}

func TestAPKIWrapsNothingElseThanAClearKey(t *testing.T) {
	b := newBox(t, tpm.P256)
	parent, key := must(b.TPM.Parent(b.ctx()))(t), p256(t)
	wrapped := must(Wrap(parent, pkcs8(t, key)))(t)
	for name, c := range map[string]struct {
		parent, text []byte
		word         string
	}{
		"a wrapped one":                  {parent, wrapped, "in a TPM or wrapped to one already"},
		"the certificate of another key": {parent, join(pkcs8(t, key), encode(b.certify(p256(t)))), "for another key"},
		"to a certificate":               {encode(b.certify(key)), pkcs8(t, key), "take what gatewayd enroll import --parent prints"},
		"to another key":                 {inPEM(tpm.ParentType, must(x509.MarshalPKIXPublicKey(key.Public()))(t)), pkcs8(t, key), "no storage key of a TPM"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Wrap(c.parent, c.text)
			wantError(t, err, c.word)
		})
	}
	if _, err := ClearKey(wrapped); err == nil {
		t.Error("a wrapped key is a clear one")
	}
	if k := must(ClearKey(pkcs8(t, key)))(t); keystore.Mark(k.Public()) != keystore.Mark(key.Public()) {
		t.Error("another key was read")
	}
}

// remembers makes this test binary a process that imports a clear key at the
// TPM of that address, and waits, so that somebody may look into its memory.
const remembers = "GATEWAY_ENROLL_REMEMBERS"

// remember reads the key from its input, up to a line of its own, as gatewayd
// enroll import reads all of it.
func remember() int {
	const most = 256 << 10 // too much for a stack, which leaves copies behind when it grows
	text := make([]byte, 0, most)
	for !bytes.HasSuffix(text, []byte("\n.\n")) {
		n, err := os.Stdin.Read(text[len(text):most])
		if err != nil {
			return 1
		}
		text = text[:len(text)+n]
	}
	c := &config.Config{}
	c.Gateway.StateDir, c.Gateway.EUI64 = os.Getenv(remembers+"_DIR"), pki.DefaultDevice
	c.Identity.TPM, c.Identity.KeyType = os.Getenv(remembers), string(tpm.P256)
	var public []byte
	d, err := OpenTPM(c, tpm.Options{})
	if err == nil {
		var a *Applicant
		if a, err = New(c, Device, d, time.Now); err == nil {
			_, err = a.Import(context.Background(), text[:len(text)-2], true)
		}
		if err == nil {
			public, err = publicIn(a.Store)
		}
	}
	for range 3 { // crypto/ecdsa has a cache that lets go a cycle later
		runtime.GC()
	}
	fmt.Println("done", err)
	_, _ = io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(public)
	return 0
}

// publicIn is the public key of the next slot: what is to be found in the memory.
func publicIn(s *keystore.Store) ([]byte, error) {
	slots, err := s.Read()
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(slots.Next.Public)
}

// No file has the key, and the process wiped what it can reach: the text, its
// decoding, the numbers of the key. The copies that are left are those which
// packages x509, crypto/ecdsa, crypto/rsa and tpm2 made for themselves; this
// test counts them, so that a change for the worse is seen, and nobody takes
// them for none. They end with the process.
func TestAClearKeyRestsNowhere(t *testing.T) {
	if raced {
		t.Skip("the race detector keeps memory of its own")
	}
	ecc, rsa2048 := p256(t), must(rsa.GenerateKey(rand.Reader, 2048))(t)
	for name, c := range map[string]struct {
		key  crypto.Signer
		text []byte
		line int // of the text, that begins within a private number
		most int // copies of all private numbers, in either byte order
	}{
		"EC":  {ecc, pkcs8(t, ecc), 2, 10},
		"RSA": {rsa2048, pkcs8(t, rsa2048), 10, 30},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, tpm.P256)
			b.shut()
			cmd := exec.CommandContext(t.Context(), must(os.Executable())(t))
			cmd.Env = append(os.Environ(), remembers+"="+b.config.Identity.TPM, remembers+"_DIR="+b.config.Gateway.StateDir)
			in, out := must(cmd.StdinPipe())(t), must(cmd.StdoutPipe())(t)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { in.Close(); _ = cmd.Wait() }()
			if _, err := in.Write(append(bytes.Clone(c.text), ".\n"...)); err != nil {
				t.Fatal(err)
			}
			if said, err := bufio.NewReader(out).ReadString('\n'); err != nil || said != "done <nil>\n" {
				t.Fatalf("%q %v", said, err)
			}
			memory := memoryOf(t, cmd.Process.Pid)
			mark := must(x509.MarshalPKIXPublicKey(c.key.Public()))(t)
			if !bytes.Contains(memory, mark) {
				t.Fatal("not even the public key is found: this looks in the wrong place")
			}
			if bytes.Contains(memory, []byte(strings.Split(string(c.text), "\n")[c.line][:24])) {
				t.Error("the text of the key is in the memory")
			}
			block, _ := pem.Decode(c.text)
			if bytes.Contains(memory, block.Bytes) {
				t.Error("the decoded text of the key is in the memory")
			}
			copies := 0
			for _, secret := range secrets(t, c.key) {
				copies += bytes.Count(memory, secret)
			}
			most := c.most
			if wipes {
				most = 0
			}
			t.Logf("%d copies of private numbers", copies)
			if copies > most {
				t.Errorf("%d copies of private numbers, %d are known", copies, most)
			}
			b.holdsNoneOf(c.key)
		})
	}
}

// memoryOf reads all that a process may write to and did.
func memoryOf(t testing.TB, pid int) (all []byte) {
	t.Helper()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Skip("the memory of another process cannot be read here: ", err)
	}
	defer mem.Close()
	pagemap := must(os.Open(fmt.Sprintf("/proc/%d/pagemap", pid)))(t)
	defer pagemap.Close()
	page := uint64(os.Getpagesize())
	part := make([]byte, page)
	for line := range strings.Lines(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid)))(t))) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(fields[1], "rw") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		begin, end := must(strconv.ParseUint(from, 16, 64))(t), must(strconv.ParseUint(to, 16, 64))(t)
		if end-begin > 1<<30 { // what the race detector reserves
			continue
		}
		entries := make([]byte, (end-begin)/page*8)
		if _, err := pagemap.ReadAt(entries, int64(begin/page*8)); err != nil {
			t.Skip("what is in the memory of another process cannot be told here: ", err)
		}
		for i := range (end - begin) / page {
			if entries[i*8+7]&0x80 == 0 { // bit 63: present (Documentation/admin-guide/mm/pagemap.rst)
				continue
			}
			if _, err := mem.ReadAt(part, int64(begin+i*page)); err == nil {
				all = append(all, part...)
			}
		}
	}
	return all
}
