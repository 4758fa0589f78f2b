package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bedside-gateway/gatewayd/internal/sim/swtpm"
	"github.com/bedside-gateway/gatewayd/keystore/attest"
)

var nonce = []byte("a nonce of 16..32 bytes")

// A device is a TPM with a key, an attestation key and a certificate request.
type device struct {
	tpm          *TPM
	key, ak, csr []byte
}

func newDevice(t testing.TB, d *TPM, b *Binding) device {
	t.Helper()
	v := device{tpm: d, key: must(d.Create(t.Context(), P256, b))(t), ak: must(d.AttestationKey(t.Context()))(t)}
	k := must(d.Load(t.Context(), v.key))(t)
	v.csr = must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "0123456789ABCDEF"}}, k))(t)
	return v
}

func (v device) evidence(t testing.TB) attest.Evidence {
	t.Helper()
	return must(v.tpm.Attest(t.Context(), v.key, v.ak, v.csr, nonce))(t)
}

// proves has a CA judge the device, to the end.
func (v device) proves(t testing.TB, o attest.Options) attest.Result {
	t.Helper()
	e := v.evidence(t)
	o.Nonce, o.Now = nonce, time.Now()
	r, err := attest.Verify(must(attest.Parse(must(e.Marshal())(t)))(t), o)
	if err != nil {
		t.Fatal(err)
	}
	secret := bytes.Repeat([]byte{7}, 32)
	blob, encrypted := challenge(t, e, secret)
	got, err := v.tpm.Activate(t.Context(), v.ak, blob, encrypted)
	if err != nil || !bytes.Equal(got, secret) {
		t.Fatalf("the challenge opens to %x, %v", got, err)
	}
	return r
}

func challenge(t testing.TB, e attest.Evidence, secret []byte) (blob, encrypted []byte) {
	t.Helper()
	blob, encrypted, err := attest.Challenge(e, secret)
	if err != nil {
		t.Fatal(err)
	}
	return blob, encrypted
}

func manufactured(t testing.TB) (*swtpm.Emulator, swtpm.Maker) {
	t.Helper()
	if _, err := exec.LookPath("swtpm_setup"); err != nil && os.Getenv("NEED_SWTPM") == "" {
		t.Skip(err)
	}
	dir := folder(t)
	m := must(swtpm.Manufacture(t.Context(), dir))(t)
	return started(t, dir, swtpm.Start), m
}

func TestAnotherMakersCertificateVouchesForTheKey(t *testing.T) {
	t.Parallel()
	e, maker := manufactured(t)
	v := newDevice(t, open(t, e, Options{}), nil)
	r := v.proves(t, attest.Options{EKRoots: must(maker.Roots())(t), Intermediates: must(maker.Intermediates())(t)})
	if r.TPM.Manufacturer == "" || r.EKCertificate == nil || r.EKCertificate.PublicKeyAlgorithm != x509.RSA {
		t.Errorf("%+v", r)
	}
}

func TestATPMWithoutACertificateIsKnownByItsName(t *testing.T) {
	boss := signer(t)
	e := emulator(t)
	setup := open(t, e, Options{})
	approval := approve(t, setup, boss)
	setup.Close()
	d := open(t, e, Options{Approvals: []Approval{approval}})
	name := hex.EncodeToString(must(d.Fingerprint(t.Context()))(t).Endorsement)
	for what, b := range map[string]*Binding{"a free key": nil, "a bound key": {Signer: boss.Public()}} {
		t.Run(what, func(t *testing.T) {
			r := newDevice(t, d, b).proves(t, attest.Options{AllowBareEK: func(n string) bool { return n == name }})
			if r.EKName != name || r.EKCertificate != nil {
				t.Errorf("%+v", r)
			}
		})
	}
}

// A maker as makers are: a certificate on a curve, and a chain of two that is
// cut in the middle of a certificate, with what fills the index up behind it.
func TestAChainOverSeveralIndicesIsReadWhole(t *testing.T) {
	e := emulator(t)
	d := open(t, e, Options{})
	fingerprint := must(d.Fingerprint(t.Context()))(t)
	v := newDevice(t, d, nil)
	ek := v.evidence(t).EK
	d.Close()
	rootKey, root := ca(t, "root", nil, nil)
	middleKey, middle := ca(t, "middle", root, rootKey)
	lastKey, last := ca(t, "last", middle, middleKey)
	leaf := certifyEK(t, ek, last, lastKey)
	chain := slices.Concat(last.Raw, middle.Raw)
	filled := slices.Concat(leaf, bytes.Repeat([]byte{0xff}, 700))
	maker, conn := raw(t, e)
	writeIndex(t, maker, indexECC, filled)
	writeIndex(t, maker, indexChain, chain[:len(last.Raw)+100])
	writeIndex(t, maker, indexChain+1, chain[len(last.Raw)+100:])
	writeIndex(t, maker, indexRSA, []byte("\x30\x03abc and it is no certificate of ours"))
	conn.Close()
	v.tpm = open(t, e, Options{})
	got := v.evidence(t)
	if !bytes.Equal(got.EKCertificate, leaf) || len(got.EKIntermediates) != 2 || !bytes.Equal(got.EKIntermediates[0], last.Raw) || !bytes.Equal(got.EKIntermediates[1], middle.Raw) {
		t.Fatalf("a certificate of %d bytes and %d above it", len(got.EKCertificate), len(got.EKIntermediates))
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	r := v.proves(t, attest.Options{EKRoots: roots})
	if r.TPM.Manufacturer != "id:54455354" || r.EKName != hex.EncodeToString(fingerprint.Endorsement) {
		t.Errorf("%+v", r)
	}
}

func TestACertificateOfAnotherKeyIsNotShown(t *testing.T) {
	e := emulator(t)
	d := open(t, e, Options{})
	v := newDevice(t, d, nil)
	d.Close()
	maker, conn := raw(t, e)
	_, cert := ca(t, "another", nil, nil)
	writeIndex(t, maker, indexECC, cert.Raw)
	conn.Close()
	v.tpm = open(t, e, Options{})
	if got := v.evidence(t); got.EKCertificate != nil || len(got.EK) == 0 {
		t.Errorf("it shows a certificate of %d bytes", len(got.EKCertificate))
	}
}

func TestAChallengeOpensOnlyWhereItIsFor(t *testing.T) {
	t.Parallel()
	d, elsewhere := open(t, emulator(t), Options{}), open(t, emulator(t), Options{})
	v, w := newDevice(t, d, nil), newDevice(t, elsewhere, nil)
	blob, encrypted := challenge(t, v.evidence(t), bytes.Repeat([]byte{7}, 32))
	flip := func(b []byte, i int) []byte { b = bytes.Clone(b); b[i] ^= 1; return b }
	for name, c := range map[string]struct {
		d                   device
		ak, blob, encrypted []byte
	}{
		"another TPM":               {w, w.ak, blob, encrypted},
		"another attestation key":   {v, must(d.AttestationKey(t.Context()))(t), blob, encrypted},
		"the key of another TPM":    {v, w.ak, blob, encrypted},
		"a blob that was changed":   {v, v.ak, flip(blob, 40), encrypted},
		"a blob that is cut":        {v, v.ak, blob[:10], encrypted},
		"no blob":                   {v, v.ak, nil, encrypted},
		"a secret that was changed": {v, v.ak, blob, flip(encrypted, 20)},
		"a secret that is cut":      {v, v.ak, blob, encrypted[:10]},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.d.tpm.Activate(t.Context(), c.ak, c.blob, c.encrypted)
			if got != nil {
				t.Errorf("it opens to %x", got)
			}
			if name == "the key of another TPM" {
				wantFault(t, err, Foreign)
				wantAdvice(t, err, "a new attestation key")
				return
			}
			wantFault(t, err, Astray)
			wantAdvice(t, err, "gatewayd enroll attest again")
		})
	}
}

func TestWhatIsNotAttested(t *testing.T) {
	d, elsewhere := open(t, emulator(t), Options{}), open(t, emulator(t), Options{})
	v, w := newDevice(t, d, nil), newDevice(t, elsewhere, nil)
	for name, c := range map[string]struct {
		key, ak, nonce []byte
		want           Fault
		next           string
	}{
		"a key of another TPM":              {w.key, v.ak, nonce, Foreign, Anew},
		"with the AK of another TPM":        {v.key, w.ak, nonce, Foreign, nextAttestation},
		"a file that is none":               {[]byte("x"), v.ak, nonce, Tampered, Anew},
		"with a file that is none":          {v.key, nil, nonce, Tampered, nextAttestation},
		"with a device key":                 {v.key, v.key, nonce, Tampered, nextAttestation},
		"without a nonce":                   {v.key, v.ak, nil, Unable, nextChallenge},
		"with a nonce longer than possible": {v.key, v.ak, make([]byte, 65), Unable, nextChallenge},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := d.Attest(t.Context(), c.key, c.ak, v.csr, c.nonce)
			if e.Key != nil {
				t.Error("there is evidence")
			}
			wantFault(t, err, c.want)
			wantAdvice(t, err, c.next)
		})
	}
	_, err := d.Load(t.Context(), v.ak) // it would be of no use for TLS
	wantFault(t, err, Unable)
}

func TestAnAttestationKeyThatDoesNotLoadIsMadeAnew(t *testing.T) {
	d, elsewhere := open(t, emulator(t), Options{}), open(t, emulator(t), Options{})
	v, w := newDevice(t, d, nil), newDevice(t, elsewhere, nil)
	if kept := must(d.KeepAttestationKey(t.Context(), v.ak))(t); !bytes.Equal(kept, v.ak) {
		t.Error("a good one is not kept")
	}
	for name, file := range map[string][]byte{"none yet": nil, "of another TPM": w.ak, "garbage": []byte("garbage"), "a device key": v.key} {
		t.Run(name, func(t *testing.T) {
			ak := must(d.KeepAttestationKey(t.Context(), file))(t)
			if bytes.Equal(ak, file) {
				t.Fatal("it is kept")
			}
			device{d, v.key, ak, v.csr}.evidence(t)
		})
	}
	gone := Open("unix:/no/tpm.sock", Options{})
	if ak, err := gone.KeepAttestationKey(t.Context(), v.ak); FaultOf(err) != Absent {
		t.Errorf("without a TPM: %d bytes, %v", len(ak), err)
	}
}

func TestAnEndorsementHierarchyWithAPasswordIsNamed(t *testing.T) {
	e := emulator(t)
	tool(t, e, "", "tpm2_changeauth", "-c", "endorsement", "secret")
	d := open(t, e, Options{})
	k := create(t, d, P256)
	_, err := d.Fingerprint(t.Context())
	wantFault(t, err, OwnerLocked)
	_, err = d.Attest(t.Context(), k, must(d.AttestationKey(t.Context()))(t), nil, nonce)
	wantFault(t, err, OwnerLocked)
}

func ca(t testing.TB, name string, parent *x509.Certificate, by *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key := signer(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	if parent == nil {
		parent, by = template, key
	}
	der := must(x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by))(t)
	return key, must(x509.ParseCertificate(der))(t)
}

// certifyEK is a certificate by the EK Credential Profile for an endorsement key on a curve.
func certifyEK(t testing.TB, ek []byte, parent *x509.Certificate, by *ecdsa.PrivateKey) []byte {
	t.Helper()
	area := must(tpm2.Unmarshal[tpm2.TPMTPublic](ek))(t)
	p := must(area.Unique.ECC())(t)
	key := must(ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, p.X.Buffer, p.Y.Buffer)))(t)
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value string `asn1:"utf8"`
	}
	type set []attribute
	name := must(asn1.Marshal([]asn1.RawValue{{FullBytes: must(asn1.MarshalWithParams(set{{asn1.ObjectIdentifier{2, 23, 133, 2, 1}, "id:54455354"}}, "set"))(t)}}))(t)
	directory := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}
	alternative := must(asn1.Marshal([]asn1.RawValue{directory}))(t)
	return must(x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageKeyAgreement, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: alternative}}}, parent, key, by))(t)
}

// writeIndex does what a maker does in its factory.
func writeIndex(t testing.TB, maker transport.TPM, index tpm2.TPMHandle, data []byte) {
	t.Helper()
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	public := tpm2.TPMSNVPublic{NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{PPWrite: true, PPRead: true, OwnerRead: true, AuthRead: index != indexChain, NoDA: true, PlatformCreate: true}}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(public)}).Execute(maker); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(data); at += 512 {
		r := must(tpm2.NVReadPublic{NVIndex: index}.Execute(maker))(t)
		_, err := tpm2.NVWrite{AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: index, Name: r.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: data[at:min(at+512, len(data))]}, Offset: uint16(at)}.Execute(maker)
		if err != nil {
			t.Fatal(err)
		}
	}
}
