package tls

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/internal/fips140/bigmod"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"math/big"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

func TestExtDefaultClientHelloIsTheStockOne(t *testing.T) {
	c := Client(nil, &Config{ServerName: "x"})
	hello, _, _, err := c.makeClientHello()
	if err != nil {
		t.Fatal(err)
	}
	if hello.ocspMulti || slices.ContainsFunc(hello.cipherSuites, extIsDHE) ||
		slices.ContainsFunc(hello.supportedCurves, func(id CurveID) bool { return id >= 256 && id < 512 }) {
		t.Error("the overlay shows in a ClientHello that nobody asked to change")
	}
}

func TestExtStatusRequestV2OnTheWire(t *testing.T) {
	var b cryptobyte.Builder
	extMarshalStatusRequestV2(&b)
	want := "00110009" + "0007" + "02" + "0004" + "0000" + "0000"
	if got := hex.EncodeToString(b.BytesOrPanic()); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestExtStatusRequestV2Read(t *testing.T) {
	for name, test := range map[string]struct {
		data      string
		ok, multi bool
	}{
		"ocsp_multi alone":                {"0007" + "02" + "0004" + "00000000", true, true},
		"an item of another type before":  {"000b" + "09" + "0001" + "ff" + "02" + "0004" + "00000000", true, true},
		"only the single kind":            {"0007" + "01" + "0004" + "00000000", true, false},
		"an empty list":                   {"0000", false, false},
		"a request cut short":             {"0006" + "02" + "0004" + "000000", false, false},
		"rubbish behind the request":      {"0008" + "02" + "0005" + "0000000001", false, false},
		"a responder list that runs over": {"0007" + "02" + "0004" + "00050000", false, false},
	} {
		data, err := hex.DecodeString(test.data)
		if err != nil {
			t.Fatal(err)
		}
		s := cryptobyte.String(data)
		var m clientHelloMsg
		if ok := m.extReadStatusRequestV2(&s); ok != test.ok || m.ocspMulti && !test.multi || ok && m.ocspMulti != test.multi {
			t.Errorf("%s: ok %v, multi %v", name, ok, m.ocspMulti)
		}
	}
}

func TestExtCertificateStatusOfMany(t *testing.T) {
	wire, _ := hex.DecodeString("16000011" + "02" + "00000d" + "000003" + "010203" + "000000" + "000001" + "04")
	var m certificateStatusMsg
	if !m.unmarshal(wire) {
		t.Fatal("not read")
	}
	if len(m.multi) != 3 || !bytes.Equal(m.multi[0], []byte{1, 2, 3}) || m.multi[1] != nil || !bytes.Equal(m.multi[2], []byte{4}) {
		t.Errorf("read as %v", m.multi)
	}
	if b, err := m.marshal(); err != nil || !bytes.Equal(b, wire) {
		t.Errorf("written as %x, %v", b, err)
	}
	for _, bad := range []string{"1600000402000000", "16000005" + "02" + "00000101", "16000008" + "02" + "000004" + "00000201", "16000009" + "02" + "000004" + "00000101" + "00"} {
		data, _ := hex.DecodeString(bad)
		if new(certificateStatusMsg).unmarshal(data) {
			t.Errorf("%s was read", bad)
		}
	}
}

func TestExtResponseTwiceInOneEntryIsAnError(t *testing.T) {
	ext := "0005" + "0005" + "01" + "000001" + "aa"
	entry := func(exts string) []byte {
		b, _ := hex.DecodeString(exts)
		var builder cryptobyte.Builder
		builder.AddUint24LengthPrefixed(func(b2 *cryptobyte.Builder) {
			b2.AddUint24LengthPrefixed(func(c *cryptobyte.Builder) { c.AddBytes([]byte("leaf")) })
			b2.AddUint16(0)
			b2.AddUint24LengthPrefixed(func(c *cryptobyte.Builder) { c.AddBytes([]byte("issuing")) })
			b2.AddUint16LengthPrefixed(func(c *cryptobyte.Builder) { c.AddBytes(b) })
		})
		return builder.BytesOrPanic()
	}
	for exts, want := range map[string]bool{ext: true, ext + ext: false, "0005" + "0004" + "01" + "000000": false} {
		s := cryptobyte.String(entry(exts))
		if got := unmarshalCertificate(&s, new(Certificate)); got != want {
			t.Errorf("%s: %v", exts, got)
		}
	}
}

// The primes are derived from the formulas of RFC 7919, appendix A, and RFC 3526.
func TestExtPrimes(t *testing.T) {
	one := big.NewInt(1)
	pow := func(n uint) *big.Int { return new(big.Int).Lsh(one, n) }
	floor := func(constant func(prec uint) *big.Float, shift int) *big.Int {
		f := constant(5000)
		f.SetMantExp(f, shift)
		i, _ := f.Int(nil)
		return i
	}
	for name, test := range map[string]struct {
		hex      string
		bits     uint
		constant func(uint) *big.Float
		shift    int
		x        int64
	}{
		"ffdhe2048": {ffdhe2048Prime, 2048, extE, 1918, 560316},
		"ffdhe3072": {ffdhe3072Prime, 3072, extE, 2942, 2625351},
		"modp2048":  {modp2048Prime, 2048, extPi, 1918, 124476},
		"modp3072":  {modp3072Prime, 3072, extPi, 2942, 1690314},
		"modp4096":  {modp4096Prime, 4096, extPi, 3966, 240904},
	} {
		middle := floor(test.constant, test.shift)
		middle.Add(middle, big.NewInt(test.x)).Lsh(middle, 64)
		p := pow(test.bits)
		p.Sub(p, pow(test.bits-64)).Add(p, middle).Sub(p, one)
		got, _ := new(big.Int).SetString(test.hex, 16)
		if got.Cmp(p) != 0 {
			t.Errorf("%s is not the prime of its RFC", name)
			continue
		}
		q := new(big.Int).Rsh(p, 1)
		if !p.ProbablyPrime(2) || !q.ProbablyPrime(2) {
			t.Errorf("%s is no safe prime", name)
		}
		if new(big.Int).Exp(big.NewInt(2), q, p).Cmp(one) != 0 {
			t.Errorf("2 does not generate the subgroup of order q of %s", name)
		}
	}
}

// extE is Euler's number by its series.
func extE(prec uint) *big.Float {
	sum, term := big.NewFloat(0).SetPrec(prec), big.NewFloat(1).SetPrec(prec)
	for k := int64(1); term.MantExp(nil) > -int(prec); k++ {
		sum.Add(sum, term)
		term.Quo(term, new(big.Float).SetPrec(prec).SetInt64(k))
	}
	return sum
}

// extPi is π by Machin's formula.
func extPi(prec uint) *big.Float {
	arctanInverse := func(x int64) *big.Float {
		square := new(big.Float).SetPrec(prec).SetInt64(x * x)
		term := new(big.Float).SetPrec(prec).Quo(big.NewFloat(1).SetPrec(prec), new(big.Float).SetPrec(prec).SetInt64(x))
		sum := new(big.Float).SetPrec(prec)
		for k := int64(1); term.MantExp(nil) > -int(prec); k += 2 {
			part := new(big.Float).SetPrec(prec).Quo(term, new(big.Float).SetPrec(prec).SetInt64(k))
			if k%4 == 1 {
				sum.Add(sum, part)
			} else {
				sum.Sub(sum, part)
			}
			term.Quo(term, square)
		}
		return sum
	}
	a, b := arctanInverse(5), arctanInverse(239)
	four := big.NewFloat(4).SetPrec(prec)
	a.Mul(a, four).Sub(a, b)
	return a.Mul(a, four)
}

func TestExtDiffieHellmanValues(t *testing.T) {
	g := extGroupByID(extFFDHE2048)
	agree := func(exponent, peer []byte) ([]byte, error) {
		ka := &extDHEKeyAgreement{exponent: exponent}
		var err error
		if ka.modulus, err = bigmod.NewModulus(g.bytes()); err != nil {
			t.Fatal(err)
		}
		return ka.agree(peer)
	}
	// Short results show that leading zero bytes are dropped (RFC 5246, section 8.1.2).
	if s, err := agree([]byte{5}, []byte{2}); err != nil || !bytes.Equal(s, []byte{0x20}) {
		t.Errorf("2^5 = %x, %v", s, err)
	}
	if s, err := agree([]byte{5}, []byte{0, 0, 2}); err != nil || !bytes.Equal(s, []byte{0x20}) {
		t.Errorf("padded: 2^5 = %x, %v", s, err)
	}
	p, _ := new(big.Int).SetString(g.prime, 16)
	for name, y := range map[string]*big.Int{
		"0": big.NewInt(0), "1": big.NewInt(1), "p-1": new(big.Int).Sub(p, big.NewInt(1)), "p": p, "p+1": new(big.Int).Add(p, big.NewInt(1)),
	} {
		if _, err := agree([]byte{5}, y.Bytes()); err == nil {
			t.Errorf("the value %s was taken", name)
		}
	}
}

func TestExtGroupForClient(t *testing.T) {
	c := &Config{}
	for name, test := range map[string]struct {
		named []CurveID
		want  CurveID
	}{
		"names none":                {[]CurveID{X25519, CurveP256}, extFFDHE3072},
		"names the smaller":         {[]CurveID{X25519, extFFDHE2048}, extFFDHE2048},
		"names both, smaller first": {[]CurveID{extFFDHE2048, extFFDHE3072}, extFFDHE3072},
		"names another only":        {[]CurveID{260}, 0},
	} {
		g := c.extDHEGroup(test.named)
		if got := g != nil; got != (test.want != 0) || g != nil && g.id != test.want {
			t.Errorf("%s: %v", name, g)
		}
	}
}

type extPKI struct {
	roots      *x509.CertPool
	ecc, rsa   Certificate
	clientCert Certificate
}

func extMakePKI(t testing.TB) *extPKI {
	t.Helper()
	p := &extPKI{roots: x509.NewCertPool()}
	issue := func(cn string, isCA bool, pub crypto.PublicKey, parent *x509.Certificate, signer crypto.Signer) *x509.Certificate {
		serial, _ := rand.Int(rand.Reader, big.NewInt(1<<60))
		template := &x509.Certificate{
			SerialNumber: serial, Subject: pkix.Name{CommonName: cn},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			BasicConstraintsValid: true, IsCA: isCA, DNSNames: []string{"platform.test"},
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		}
		if parent == nil {
			parent = template
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, signer)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	chain := func(rootKey, caKey, leafKey crypto.Signer) Certificate {
		root := issue("root", true, rootKey.Public(), nil, rootKey)
		ca := issue("issuing", true, caKey.Public(), root, rootKey)
		leaf := issue("platform.test", false, leafKey.Public(), ca, caKey)
		p.roots.AddCert(root)
		return Certificate{Certificate: [][]byte{leaf.Raw, ca.Raw}, PrivateKey: leafKey, Leaf: leaf}
	}
	ec := func() crypto.Signer {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p.ecc, p.rsa = chain(ec(), ec(), ec()), chain(ec(), ec(), r)
	p.clientCert = chain(ec(), ec(), ec())
	return p
}

func extHandshake(t testing.TB, client, server *Config) (clientState, serverState ConnectionState, clientErr, serverErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer conn.Close()
		s := Server(conn, server)
		serverErr = s.HandshakeContext(ctx)
		serverState = s.ConnectionState()
		if serverErr == nil {
			s.Write([]byte("x"))
		}
		_, _ = conn.Read(make([]byte, 1)) // until the client has closed
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := Client(conn, client)
	if clientErr = c.HandshakeContext(ctx); clientErr == nil {
		clientState = c.ConnectionState()
		_, clientErr = c.Read(make([]byte, 1))
	}
	conn.Close()
	<-done
	return
}

var extSpecOrder = []uint16{
	TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, extTLS_DHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256, extTLS_DHE_RSA_WITH_AES_128_CBC_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
	extTLS_DHE_RSA_WITH_AES_256_CBC_SHA256,
}

func TestExtServerOrderDecides(t *testing.T) {
	p := extMakePKI(t)
	server := &Config{Certificates: []Certificate{p.rsa, p.ecc}}
	if err := server.SetCipherSuiteOrder(extSpecOrder); err != nil {
		t.Fatal(err)
	}
	for i := range extSpecOrder {
		client := &Config{RootCAs: p.roots, ServerName: "platform.test", MaxVersion: VersionTLS12}
		offered := slices.Clone(extSpecOrder[i:])
		slices.Reverse(offered)
		if err := client.SetCipherSuiteOrder(offered); err != nil {
			t.Fatal(err)
		}
		state, _, err, serverErr := extHandshake(t, client, server)
		if err != nil || serverErr != nil {
			t.Errorf("%s: %v, %v", CipherSuiteName(extSpecOrder[i]), err, serverErr)
		} else if state.CipherSuite != extSpecOrder[i] {
			t.Errorf("a client that offers %d suites got %s, want %s", len(offered), CipherSuiteName(state.CipherSuite), CipherSuiteName(extSpecOrder[i]))
		}
	}
}

func TestExtResponsesOfTheWholeChain(t *testing.T) {
	p := extMakePKI(t)
	for _, version := range []uint16{VersionTLS12, VersionTLS13} {
		for name, staples := range map[string][][]byte{
			"both": {[]byte("leaf"), []byte("issuing")}, "leaf": {[]byte("leaf"), nil}, "issuing": {nil, []byte("issuing")}, "none": {nil, nil},
		} {
			cert := p.ecc
			cert.SetOCSPStaples(staples)
			server := &Config{Certificates: []Certificate{cert}, MaxVersion: version}
			client := &Config{RootCAs: p.roots, ServerName: "platform.test"}
			client.EnableStatusRequestV2()
			var seen [][]byte
			client.VerifyConnection = func(s ConnectionState) error { seen = s.StapledOCSPResponses(); return nil }
			state, _, err, serverErr := extHandshake(t, client, server)
			if err != nil || serverErr != nil {
				t.Fatalf("%x %s: %v, %v", version, name, err, serverErr)
			}
			if state.Version != version {
				t.Fatalf("version %x", state.Version)
			}
			for i, want := range staples {
				var got []byte
				if i < len(seen) {
					got = seen[i]
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%x %s: certificate %d has %q, want %q", version, name, i, got, want)
				}
			}
		}
	}
}

func TestExtClientResponses(t *testing.T) {
	p := extMakePKI(t)
	cert := p.clientCert
	cert.SetOCSPStaples([][]byte{[]byte("leaf"), []byte("issuing")})
	client := &Config{RootCAs: p.roots, ServerName: "platform.test", Certificates: []Certificate{cert}}
	server := &Config{Certificates: []Certificate{p.ecc}, ClientAuth: RequireAnyClientCert}
	_, state, err, serverErr := extHandshake(t, client, server)
	if err != nil || serverErr != nil {
		t.Fatal(err, serverErr)
	}
	if got := state.StapledOCSPResponses(); len(got) != 2 || string(got[0]) != "leaf" || string(got[1]) != "issuing" {
		t.Errorf("the server saw %q", got)
	}
}

func TestExtAlertOfTheVerdict(t *testing.T) {
	p := extMakePKI(t)
	for _, version := range []uint16{VersionTLS12, VersionTLS13} {
		for _, code := range []AlertError{44, 113} {
			client := &Config{RootCAs: p.roots, ServerName: "platform.test", MaxVersion: version,
				VerifyConnection: func(ConnectionState) error { return errors.Join(errors.New("refused"), code) }}
			_, _, err, serverErr := extHandshake(t, client, &Config{Certificates: []Certificate{p.ecc}})
			var got *net.OpError
			if err == nil || version == VersionTLS12 && (!errors.As(serverErr, &got) || got.Err.Error() != alert(code).String() && got.Err.Error() != alert(code).Error()) {
				t.Errorf("%x alert %d: client %v, server %v", version, code, err, serverErr)
			}
		}
	}
}

func TestExtSettingsSurviveClone(t *testing.T) {
	c := &Config{}
	c.EnableStatusRequestV2()
	d := c.Clone()
	if err := d.SetCipherSuiteOrder(extSpecOrder); err != nil {
		t.Fatal(err)
	}
	if !d.ext.statusRequestV2 || c.ext.suites != nil {
		t.Error("a clone lost a setting, or changed the original")
	}
	if err := c.SetCipherSuiteOrder([]uint16{1, 2}); err == nil {
		t.Error("unknown suites were taken")
	}
	if err := c.SetCipherSuiteOrder([]uint16{0x009f, 0x009f}); err == nil {
		t.Error("a suite listed twice was taken")
	}
	if err := c.SetFFDHEGroups([]uint16{0}); err == nil {
		t.Error("group 0 was taken")
	}
}

func FuzzExtCertificateStatus(f *testing.F) {
	f.Add([]byte{22, 0, 0, 17, 2, 0, 0, 13, 0, 0, 3, 1, 2, 3, 0, 0, 0, 0, 0, 1, 4})
	f.Add([]byte{22, 0, 0, 5, 1, 0, 0, 1, 9})
	f.Fuzz(func(t *testing.T, data []byte) {
		var m certificateStatusMsg
		if len(data) < 4 || !m.unmarshal(data) {
			return
		}
		b, err := m.marshal()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b[4:], data[4:]) {
			t.Errorf("%x was written as %x", data, b)
		}
	})
}

func FuzzExtStatusRequestV2(f *testing.F) {
	f.Add([]byte{0, 7, 2, 0, 4, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := cryptobyte.String(data)
		new(clientHelloMsg).extReadStatusRequestV2(&s)
	})
}

func FuzzExtServerKeyExchange(f *testing.F) {
	f.Add([]byte{0, 1, 2, 0, 1, 2, 0, 1, 2, 8, 4, 0, 1, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		ka := &extDHEKeyAgreement{}
		err := ka.processServerKeyExchange(&Config{}, &clientHelloMsg{}, &serverHelloMsg{}, &x509.Certificate{}, &serverKeyExchangeMsg{key: data})
		if err == nil {
			t.Errorf("%x was taken without a signature", data)
		}
	})
}
