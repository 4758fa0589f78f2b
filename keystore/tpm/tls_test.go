package tpm

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"
)

// identity is a self-signed certificate, made by the key itself.
func identity(t testing.TB, k *Key) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gateway"}, DNSNames: []string{"gateway"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der := must(x509.CreateCertificate(rand.Reader, template, template, k.Public(), k))(t)
	roots := x509.NewCertPool()
	roots.AddCert(must(x509.ParseCertificate(der))(t))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k, SupportedSignatureAlgorithms: k.Algorithms()}, roots
}

func TestTLSWithAKeyInTheTPM(t *testing.T) {
	t.Parallel()
	d := open(t, emulator(t), Options{})
	for _, kind := range kinds {
		k := load(t, d, kind)
		id, roots := identity(t, k)
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, algorithm := range k.Algorithms() {
				t.Run(string(kind)+" "+tls.VersionName(version)+" "+algorithm.String(), func(t *testing.T) {
					one := id
					one.SupportedSignatureAlgorithms = []tls.SignatureScheme{algorithm}
					c := &tls.Config{ServerName: "gateway", RootCAs: roots, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
						Certificates: []tls.Certificate{one}, MinVersion: version, MaxVersion: version}
					err := shake(c)
					if version == tls.VersionTLS13 && algorithm == tls.PKCS1WithSHA256 { // RFC 8446, section 4.2.3
						if err == nil {
							t.Error("TLS 1.3 with PKCS #1")
						}
						return
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
		}
		k.Release(t.Context())
	}
}

// shake is a handshake in which both sides have the key in the TPM.
func shake(c *tls.Config) error {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	server := make(chan error, 1)
	go func() {
		s := tls.Server(b, c)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		if err != nil {
			b.Close()
		}
		server <- err
	}()
	client := tls.Client(a, c)
	_, err := client.Read(make([]byte, 1))
	a.Close()
	if e := <-server; err == nil {
		err = e
	}
	return err
}
