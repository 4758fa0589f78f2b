package pki_test

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/observation"
)

func build(t *testing.T, o pki.Options) *pki.PKI {
	t.Helper()
	p, err := pki.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// verify is RFC 5280 path validation with the purpose and the name that the
// role has, and nothing of revocation.
func verify(p *pki.PKI, e *pki.Entry, now time.Time) error {
	id, err := p.Identity(e.Name)
	if err != nil {
		return err
	}
	inter := x509.NewCertPool()
	for _, der := range id.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		inter.AddCert(c)
	}
	purpose := x509.ExtKeyUsageServerAuth
	if e.Role == pki.Device {
		purpose = x509.ExtKeyUsageClientAuth
	}
	_, err = e.Certificate.Verify(x509.VerifyOptions{Roots: p.Roots(), Intermediates: inter, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{purpose}})
	return err
}

// leafFault says in one word what is wrong with a leaf, found from its bytes
// only and not from what the index says.
func leafFault(t *testing.T, p *pki.PKI, e *pki.Entry) string {
	t.Helper()
	revoked := func(c *x509.Certificate, issuer *pki.Entry) bool {
		list, err := x509.ParseRevocationList(issuer.CRL)
		if err != nil {
			t.Fatal(err)
		}
		if err := list.CheckSignatureFrom(issuer.Certificate); err != nil {
			t.Fatal(err)
		}
		for _, r := range list.RevokedCertificateEntries {
			if r.SerialNumber.Cmp(c.SerialNumber) == 0 {
				return true
			}
		}
		return false
	}
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	switch err := verify(p, e, p.Options.Now); {
	case errors.As(err, &unknown):
		return "foreign"
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return "eku"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		if p.Options.Now.Before(e.NotBefore) {
			return "early"
		}
		return "late"
	case err != nil:
		return err.Error()
	}
	issuer, err := p.Find(e.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	root, err := p.Find(issuer.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	if revoked(e.Certificate, issuer) {
		return "revoked"
	}
	if revoked(issuer.Certificate, root) {
		return "issuer revoked"
	}
	cn := e.Certificate.Subject.CommonName
	if e.Role == pki.Device {
		if id, err := observation.ParseEUI64(cn); err != nil || id != p.Options.Device {
			return "name"
		}
		return ""
	}
	if cn != p.Options.Platform && e.Certificate.VerifyHostname(p.Options.Platform) != nil {
		return "name"
	}
	return ""
}

func TestEachLeafHasExactlyTheFaultThatItsNameSays(t *testing.T) {
	faults := map[string]string{
		"": "", "-cn-only": "", "-revoked": "revoked", "-expired": "late", "-not-yet-valid": "early", "-wrong-name": "name",
		"-wrong-eku": "eku", "-issuing-revoked": "issuer revoked", "-foreign": "foreign",
	}
	schemes := []pki.Scheme{pki.ECC}
	if !testing.Short() {
		schemes = append(schemes, pki.RSA)
	}
	p := build(t, pki.Options{Schemes: schemes})
	seen := map[pki.Role]int{}
	for _, e := range p.Entries {
		if e.Role != pki.Platform && e.Role != pki.Device {
			continue
		}
		seen[e.Role]++
		t.Run(e.Name, func(t *testing.T) {
			variant := strings.TrimPrefix(strings.TrimPrefix(e.Name, "rsa-"), string(e.Role))
			want, ok := faults[variant]
			if !ok {
				t.Fatalf("variant %q is not in this test", variant)
			}
			if got := leafFault(t, p, e); got != want {
				t.Errorf("its fault is %q, want %q", got, want)
			}
			if refuse := want != ""; refuse != (e.Verdict == "refuse") {
				t.Errorf("the index says %q", e.Verdict)
			}
		})
	}
	if n := len(schemes); seen[pki.Platform] != 9*n || seen[pki.Device] != 8*n {
		t.Errorf("leaves made: %v", seen)
	}
}

func TestNamesAndEndpointsComeFromTheOptions(t *testing.T) {
	now := time.Date(2030, 5, 6, 7, 8, 9, 0, time.UTC)
	p := build(t, pki.Options{Platform: "hl7.ward.test", Device: 0x00095CFFFE000001, Now: now, Lifetime: 24 * time.Hour,
		OCSPURL: "http://ocsp.test/{ca}", CRLURL: "http://crl.test/{ca}.crl"})
	platform, err := p.Find("platform")
	if err != nil {
		t.Fatal(err)
	}
	c := platform.Certificate
	if c.Subject.CommonName != "hl7.ward.test" || len(c.DNSNames) != 1 || c.DNSNames[0] != "hl7.ward.test" {
		t.Errorf("platform names: %q %q", c.Subject.CommonName, c.DNSNames)
	}
	if !c.NotAfter.Equal(now.Add(24 * time.Hour)) {
		t.Errorf("platform valid to %v", c.NotAfter)
	}
	if len(c.OCSPServer) != 1 || c.OCSPServer[0] != "http://ocsp.test/ecc-issuing" ||
		len(c.CRLDistributionPoints) != 1 || c.CRLDistributionPoints[0] != "http://crl.test/ecc-issuing.crl" {
		t.Errorf("endpoints: %q %q", c.OCSPServer, c.CRLDistributionPoints)
	}
	device, err := p.Find("device")
	if err != nil {
		t.Fatal(err)
	}
	if cn := device.Certificate.Subject.CommonName; cn != "00095CFFFE000001" {
		t.Errorf("device name %q", cn)
	}
	root, err := p.Find("ecc-root")
	if err != nil {
		t.Fatal(err)
	}
	if root.Certificate.OCSPServer != nil || root.Certificate.CRLDistributionPoints != nil {
		t.Error("the root has a revocation endpoint: nothing may revoke a trust anchor")
	}
	if _, err := p.Find("platfrom"); err == nil || !strings.Contains(err.Error(), "platform-revoked") {
		t.Errorf("a wrong name gives %v, want the list of names", err)
	}
}

func TestOptionsOutOfRangeAreRefusedByName(t *testing.T) {
	for name, o := range map[string]pki.Options{
		"dsa":      {Schemes: []pki.Scheme{"dsa"}},
		"lifetime": {Lifetime: time.Minute},
	} {
		if _, err := pki.New(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestADirectoryIsWrittenOnceAndKeysAreForTheOwnerOnly(t *testing.T) {
	p := build(t, pki.Options{})
	dir := filepath.Join(t.TempDir(), "made", "here")
	if err := p.Write(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, pki.IndexFile))
	if err != nil {
		t.Fatal(err)
	}
	var index struct {
		Platform     string
		Certificates []struct{ Name, File, Key, CRL, Verdict, Why, Serial string }
	}
	if err := json.Unmarshal(text, &index); err != nil {
		t.Fatal(err)
	}
	if index.Platform != pki.DefaultPlatform || len(index.Certificates) != len(p.Entries) {
		t.Errorf("index of %q has %d rows", index.Platform, len(index.Certificates))
	}
	for _, e := range index.Certificates {
		info, err := os.Stat(filepath.Join(dir, e.Key))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s is readable by others: %v", e.Key, info.Mode())
		}
		if e.Why == "" || e.Serial == "" || e.Verdict == "" {
			t.Errorf("%s: the index does not say what it is", e.Name)
		}
		if _, err := os.Stat(filepath.Join(dir, e.File)); err != nil {
			t.Error(err)
		}
	}
	err = p.Write(dir)
	if err == nil || !strings.Contains(err.Error(), "holds a PKI already") {
		t.Errorf("writing again gives %v", err)
	}
}

func TestAKeyIsNeverWrittenIntoAnExistingFile(t *testing.T) {
	p := build(t, pki.Options{})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "device.key"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := p.Write(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got %v", err)
	}
}

// openssl is an implementation that shares nothing with ours.
func TestOpenSSLAgreesWithTheIndex(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	p := build(t, pki.Options{})
	dir := t.TempDir()
	if err := p.Write(dir); err != nil {
		t.Fatal(err)
	}
	crls := filepath.Join(dir, "all.crl")
	var all []byte
	for _, e := range p.Entries {
		if e.CRLFile == "" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.CRLFile))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	if err := os.WriteFile(crls, all, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, e := range p.Entries {
		if e.Role != pki.Platform && e.Role != pki.Device {
			continue
		}
		t.Run(e.Name, func(t *testing.T) {
			file := filepath.Join(dir, e.File)
			args := []string{"verify", "-x509_strict", "-crl_check_all", "-CRLfile", crls, "-CAfile", filepath.Join(dir, pki.RootsFile), "-untrusted", file}
			if e.Role == pki.Platform {
				args = append(args, "-purpose", "sslserver", "-verify_hostname", pki.DefaultPlatform)
			} else {
				args = append(args, "-purpose", "sslclient")
			}
			out, err := exec.Command(openssl, append(args, file)...).CombinedOutput()
			good := err == nil
			// openssl has no rule for the names of devices.
			if want := e.Verdict == "good" || e.Name == "device-wrong-name"; good != want {
				t.Errorf("openssl finds it good: %v, the index says %s (%s)\n%s", good, e.Verdict, e.Why, out)
			}
		})
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		if _, err := pki.New(pki.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestWhatIsReadIsWhatWasWritten(t *testing.T) {
	p := build(t, pki.Options{Platform: "hl7.ward.test", Device: 0x00095CFFFE000001})
	dir := filepath.Join(t.TempDir(), "pki")
	if err := p.Write(dir); err != nil {
		t.Fatal(err)
	}
	got, err := pki.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.Options.Platform != p.Options.Platform || got.Options.Device != p.Options.Device || len(got.Entries) != len(p.Entries) {
		t.Errorf("options %+v with %d entries", got.Options, len(got.Entries))
	}
	for i, want := range p.Entries {
		e := got.Entries[i]
		public, ok := e.Key.Public().(interface{ Equal(crypto.PublicKey) bool })
		if e.Name != want.Name || !e.Certificate.Equal(want.Certificate) || !ok || !public.Equal(want.Key.Public()) || !bytes.Equal(e.CRL, want.CRL) {
			t.Errorf("%s is not what was written", want.Name)
		}
		if e.IssuedBy().Name != want.IssuedBy().Name {
			t.Errorf("%s was issued by %s, not by %s", e.Name, e.IssuedBy().Name, want.IssuedBy().Name)
		}
	}
	chain, err := got.Chain("device")
	if err != nil || len(chain) != 3 || chain[2].Subject.String() != chain[2].Issuer.String() {
		t.Errorf("the chain of device has %d certificates, %v", len(chain), err)
	}
	if !got.Roots().Equal(p.Roots()) {
		t.Error("the roots differ")
	}
}

func TestADirectoryThatIsDamagedIsRefusedByTheNameOfTheFile(t *testing.T) {
	p := build(t, pki.Options{})
	swapped := filepath.Join(t.TempDir(), "pki")
	if err := p.Write(swapped); err != nil {
		t.Fatal(err)
	}
	anothers, err := os.ReadFile(filepath.Join(swapped, "platform.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(swapped, "device.key"), anothers, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Read(swapped); err == nil || !strings.Contains(err.Error(), "device.key is not the key of device.pem") {
		t.Errorf("another's key gives %v", err)
	}
	if _, err := pki.Read(t.TempDir()); err == nil || !strings.Contains(err.Error(), "gatewaysim pki --dir") {
		t.Errorf("an empty directory gives %v", err)
	}
	for file, damage := range map[string]struct{ from, to, word string }{
		"device.pem":    {"BEGIN", "BEGUN", "device.pem begins with the certificate"},
		"platform.key":  {"PRIVATE KEY-----\n", "PRIVATE KEY-----\nAAAA", "platform.key"},
		"ecc-root.crl":  {"BEGIN", "BEGUN", "ecc-root.crl is not in PEM form"},
		pki.IndexFile:   {`"device.pem"`, `"../device.pem"`, "no file of"},
		"responder.pem": {"CERTIFICATE-----\n", "CERTIFICATE-----\nAAAA", "responder.pem"},
	} {
		dir := filepath.Join(t.TempDir(), "pki")
		if err := p.Write(dir); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		changed := strings.Replace(string(text), damage.from, damage.to, 1)
		if changed == string(text) {
			t.Fatalf("%s has no %q to damage", file, damage.from)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := pki.Read(dir); err == nil || !strings.Contains(err.Error(), damage.word) {
			t.Errorf("%s: %v, want %q", file, err, damage.word)
		}
	}
}

func TestRespondersHaveTheFaultsThatTheirNamesSay(t *testing.T) {
	p := build(t, pki.Options{})
	noCheck := asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}
	seen := 0
	for _, e := range p.Entries {
		if e.Role != pki.Responder {
			continue
		}
		seen++
		c := e.Certificate
		if err := c.CheckSignatureFrom(e.IssuedBy().Certificate); err != nil {
			t.Errorf("%s: %v", e.Name, err)
		}
		unchecked := !slices.ContainsFunc(c.Extensions, func(x pkix.Extension) bool { return x.Id.Equal(noCheck) })
		var faults []string
		if !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
			faults = append(faults, "-no-eku")
		}
		if p.Options.Now.After(c.NotAfter) {
			faults = append(faults, "-expired")
		}
		if unchecked {
			faults = append(faults, "-unchecked")
		}
		want := strings.TrimPrefix(strings.TrimPrefix(e.Name, "root-"), "responder")
		if got := strings.Join(faults, ""); got != want {
			t.Errorf("%s has the faults %q", e.Name, got)
		}
	}
	if seen != 8 {
		t.Errorf("%d responders were made, want 4 of each CA", seen)
	}
}
