package tlspolicy

import (
	"crypto"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
)

// dumb is a key that does not sign, for a reason.
type dumb struct {
	crypto.Signer
	reason error
}

func (d dumb) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { return nil, d.reason }

func TestAKeyThatDoesNotSignIsToldFromARefusal(t *testing.T) {
	h := newHospital(t)
	c := h.chain()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			address, _ := h.serve(c, func(s *tls.Config) { s.MaxVersion = version })
			reason := errors.New("the TPM is away")
			for _, test := range []struct {
				name string
				key  func(crypto.Signer) crypto.Signer
				want error
			}{
				{"a key that does not sign", func(s crypto.Signer) crypto.Signer { return dumb{s, reason} }, reason},
				{"a key that signs", func(s crypto.Signer) crypto.Signer { return s }, nil},
			} {
				config := h.client(c)
				id, err := config.GetClientCertificate(nil)
				if err != nil {
					t.Fatal(err)
				}
				own := *id
				own.PrivateKey = test.key(id.PrivateKey.(crypto.Signer))
				config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
				raw, err := net.Dial("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				defer raw.Close()
				conn, err := Handshake(t.Context(), raw, config)
				if !errors.Is(err, test.want) || (conn == nil) != (test.want != nil) {
					t.Errorf("%s: %v", test.name, err)
				}
				if _, ours := errors.AsType[*KeyError](err); ours != (test.want != nil) {
					t.Errorf("%s: the error is a %T", test.name, err)
				}
			}
		})
	}
}

func TestANameIsEscapedOnceAndHoldsNoControlCharacter(t *testing.T) {
	for in, want := range map[string]string{
		`CN=Smith\, Ward`: `"CN=Smith\, Ward"`,
		"CN=a\nb":         `"CN=a\nb"`,
		"CN=é":            `"CN=\u00e9"`,
	} {
		if got := subject(in); got != want {
			t.Errorf("%q is shown as %s and not %s", in, got, want)
		}
	}
}
