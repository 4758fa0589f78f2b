package attest

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/google/go-tpm/tpm2"
)

// A Maker is whom and what the EK certificate names (TCG EK Credential
// Profile for TPM Family 2.0, section 3.1.2): manufacturers write their
// registered ID, such as id:49465800, and so do simulators.
type Maker struct{ Manufacturer, Model, Version string }

var (
	oidEKCertificate   = asn1.ObjectIdentifier{2, 23, 133, 8, 1} // tcg-kp-EKCertificate
	oidManufacturer    = asn1.ObjectIdentifier{2, 23, 133, 2, 1} // tcg-at-tpmManufacturer
	oidModel           = asn1.ObjectIdentifier{2, 23, 133, 2, 2} // tcg-at-tpmModel
	oidVersion         = asn1.ObjectIdentifier{2, 23, 133, 2, 3} // tcg-at-tpmVersion
	oidSubjectAltNames = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// vouch says who stands for the EK: the CA that knows its name, or the maker's
// certificate.
func vouch(ek public, e Evidence, o Options) (*x509.Certificate, Maker, error) {
	if o.AllowBareEK != nil && o.AllowBareEK(ek.hexName()) {
		return nil, Maker{}, nil
	}
	if len(e.EKCertificate) == 0 {
		return nil, Maker{}, fmt.Errorf("the endorsement key has no certificate, and its name %s is not allowed: allow it if the TPM is known", ek.hexName())
	}
	c, err := x509.ParseCertificate(e.EKCertificate)
	if err != nil {
		return nil, Maker{}, fmt.Errorf("the certificate of the endorsement key cannot be read: %w", err)
	}
	maker, err := ekCertificate(c, ek)
	if err == nil {
		err = path(c, e.EKIntermediates, o)
	}
	if err != nil {
		return nil, Maker{}, fmt.Errorf("the certificate of the endorsement key (serial number %x): %w", c.SerialNumber, err)
	}
	return c, maker, nil
}

// ekCertificate is about the certificate by itself and its key.
func ekCertificate(c *x509.Certificate, ek public) (Maker, error) {
	if !ek.is(c.PublicKey) {
		return Maker{}, errors.New("it is that of another key than the endorsement key in the evidence")
	}
	if c.IsCA {
		return Maker{}, errors.New("it is that of a CA")
	}
	if !slices.ContainsFunc(c.UnknownExtKeyUsage, oidEKCertificate.Equal) {
		return Maker{}, fmt.Errorf("its extended key usage lacks tcg-kp-EKCertificate (%v)", oidEKCertificate)
	}
	use := x509.KeyUsageKeyEncipherment
	if ek.area.Type == tpm2.TPMAlgECC {
		use = x509.KeyUsageKeyAgreement
	}
	if c.KeyUsage&use == 0 {
		return Maker{}, errors.New("its key usage is not that of an endorsement key")
	}
	return makerOf(c)
}

// makerOf reads the alternative name, which has a directory name in it that
// package x509 knows nothing of, and marks it as handled.
func makerOf(c *x509.Certificate) (Maker, error) {
	i := slices.IndexFunc(c.Extensions, func(x pkix.Extension) bool { return x.Id.Equal(oidSubjectAltNames) })
	if i < 0 {
		return Maker{}, errors.New("it has no subject alternative name, which says what TPM it is")
	}
	maker, err := parseMaker(c.Extensions[i].Value)
	if err != nil {
		return Maker{}, err
	}
	c.UnhandledCriticalExtensions = slices.DeleteFunc(c.UnhandledCriticalExtensions, oidSubjectAltNames.Equal)
	return maker, nil
}

var tagDirectoryName = cbasn1.Tag(4).ContextSpecific().Constructed() // RFC 5280, section 4.2.1.6

// parseMaker takes the first directory name. Other kinds of names may stand beside it.
func parseMaker(der []byte) (Maker, error) {
	input := cryptobyte.String(der)
	var names cryptobyte.String
	if !input.ReadASN1(&names, cbasn1.SEQUENCE) || !input.Empty() {
		return Maker{}, errors.New("its subject alternative name cannot be read")
	}
	for !names.Empty() {
		var name cryptobyte.String
		var tag cbasn1.Tag
		if !names.ReadAnyASN1(&name, &tag) {
			return Maker{}, errors.New("its subject alternative name cannot be read")
		}
		if tag == tagDirectoryName {
			return readMaker(name)
		}
	}
	return Maker{}, errors.New("its subject alternative name holds no directory name, which says what TPM it is")
}

func readMaker(der []byte) (m Maker, err error) {
	var name pkix.RDNSequence
	if rest, err := asn1.Unmarshal(der, &name); err != nil || len(rest) > 0 {
		return m, errors.New("the directory name in its subject alternative name cannot be read")
	}
	for _, set := range name {
		for _, a := range set {
			text, ok := a.Value.(string)
			if !ok {
				continue
			}
			switch {
			case a.Type.Equal(oidManufacturer):
				m.Manufacturer = text
			case a.Type.Equal(oidModel):
				m.Model = text
			case a.Type.Equal(oidVersion):
				m.Version = text
			}
		}
	}
	if m.Manufacturer == "" {
		return m, errors.New("its subject alternative name does not say who made the TPM")
	}
	return m, nil
}

// path looks for a way to the makers' roots.
func path(c *x509.Certificate, intermediates [][]byte, o Options) error {
	if o.EKRoots == nil {
		return errors.New("this CA knows no maker of TPMs: give it their roots, or allow the endorsement key by its name")
	}
	between := x509.NewCertPool()
	if o.Intermediates != nil {
		between = o.Intermediates.Clone()
	}
	for i, der := range intermediates {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("the intermediate certificate %d that came with it cannot be read: %w", i+1, err)
		}
		between.AddCert(ca)
	}
	// The usage was checked above, where it has a name; issuing CAs of TPM
	// makers name none or others.
	_, err := c.Verify(x509.VerifyOptions{Roots: o.EKRoots, Intermediates: between, CurrentTime: o.Now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if invalid, is := errors.AsType[x509.CertificateInvalidError](err); is && invalid.Reason == x509.Expired {
		return fmt.Errorf("it, or a CA above it, is not valid on %s: %w", o.Now.UTC().Format(time.DateOnly), err)
	}
	if err != nil {
		return fmt.Errorf("no path leads to the roots of TPM makers: %w", err)
	}
	return nil
}
