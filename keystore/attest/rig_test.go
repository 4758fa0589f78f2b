package attest_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/bedside-gateway/gatewayd/keystore/attest"
)

// A rig makes evidence in software, so that each part can be made wrong while
// all signatures around it are right. A real TPM never would.
type rig struct {
	t           testing.TB
	ek, ak, key tpm2.TPMTPublic
	akKey       crypto.Signer
	deviceKey   *ecdsa.PrivateKey
	maker       *x509.Certificate
	makerKey    *ecdsa.PrivateKey
	ekTemplate  *x509.Certificate
	ekPublic    crypto.PublicKey
	attestation func(*tpm2.TPMSAttest)
	sign        func(digest []byte) tpm2.TPMTSignature
	nonce       []byte
	csrKey      crypto.Signer
}

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

var keys atomic.Uint64

// ecKey is the next key of a sequence that is the same in every process: the
// fuzzer's workers have to find in their rigs what the seeds were made of.
func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	sum := sha512.Sum512(binary.BigEndian.AppendUint64([]byte("key of a rig"), keys.Add(1)))
	scalar := make([]byte, (curve.Params().BitSize+7)/8)
	copy(scalar[len(scalar)-min(len(scalar)-1, len(sum)):], sum[:]) // the first byte is 0, so that it is below the order
	key, err := ecdsa.ParseRawPrivateKey(curve, scalar)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, nonce: bytes.Repeat([]byte{0xa5}, 32), deviceKey: ecKey(t, elliptic.P256()), makerKey: ecKey(t, elliptic.P256())}
	ek, ak := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	r.ek, r.ekPublic = tpm2.ECCEKTemplate, ek.Public()
	r.ek.Unique = point(t, &ek.PublicKey)
	r.akKey, r.csrKey = ak, r.deviceKey
	r.ak, r.key = signer(t, &ak.PublicKey, true), signer(t, &r.deviceKey.PublicKey, false)
	r.maker = r.certify(&x509.Certificate{Subject: pkix.Name{CommonName: "Maker of TPMs"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}, nil, r.makerKey.Public())
	r.ekTemplate = &x509.Certificate{SerialNumber: big.NewInt(0x1234), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageKeyAgreement, BasicConstraintsValid: true,
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions:    []pkix.Extension{alternativeName(t, "id:54455354")}}
	return r
}

func (r *rig) certify(template, parent *x509.Certificate, key crypto.PublicKey) *x509.Certificate {
	r.t.Helper()
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, r.makerKey)
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// alternativeName is critical, as in the certificates of TPMs without a subject.
func alternativeName(t testing.TB, manufacturer string) pkix.Extension {
	t.Helper()
	name := pkix.RDNSequence{
		{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 1}, Value: manufacturer}},
		{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 2}, Value: "rig"}, {Type: asn1.ObjectIdentifier{2, 23, 133, 2, 3}, Value: "id:00010002"}}}
	der, err := asn1.Marshal(name)
	if err != nil {
		t.Fatal(err)
	}
	return names(t, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: der})
}

func names(t testing.TB, all ...asn1.RawValue) pkix.Extension {
	t.Helper()
	der, err := asn1.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: der}
}

func point(t testing.TB, key *ecdsa.PublicKey) tpm2.TPMUPublicID {
	t.Helper()
	b, err := key.Bytes() // 4, then both coordinates
	if err != nil {
		t.Fatal(err)
	}
	return rawPoint(b[1:])
}

func rawPoint(xy []byte) tpm2.TPMUPublicID {
	return tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: xy[:len(xy)/2]}, Y: tpm2.TPM2BECCParameter{Buffer: xy[len(xy)/2:]}})
}

func curveID(key *ecdsa.PublicKey) tpm2.TPMECCCurve {
	return map[elliptic.Curve]tpm2.TPMECCCurve{elliptic.P256(): tpm2.TPMECCNistP256, elliptic.P384(): tpm2.TPMECCNistP384, elliptic.P521(): tpm2.TPMECCNistP521}[key.Curve]
}

func ecScheme(alg tpm2.TPMAlgID, hash tpm2.TPMIAlgHash, curve tpm2.TPMECCCurve) tpm2.TPMUPublicParms {
	scheme := tpm2.TPMTECCScheme{Scheme: alg}
	switch alg {
	case tpm2.TPMAlgECDSA:
		scheme.Details = tpm2.NewTPMUAsymScheme(alg, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash})
	case tpm2.TPMAlgECDAA:
		scheme.Details = tpm2.NewTPMUAsymScheme(alg, &tpm2.TPMSSchemeECDAA{HashAlg: hash})
	}
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: curve, Scheme: scheme,
		Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull}, KDF: tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull}})
}

func signer(t testing.TB, key *ecdsa.PublicKey, restricted bool) tpm2.TPMTPublic {
	t.Helper()
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true, Restricted: restricted},
		Parameters:       ecScheme(tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256, curveID(key)),
		Unique:           point(t, key),
	}
}

// rsaAK makes the attestation key an RSA key with the scheme.
func (r *rig) rsaAK(alg tpm2.TPMAlgID) {
	key := rsaKey()
	var details tpm2.TPMUAsymScheme
	switch alg {
	case tpm2.TPMAlgRSASSA:
		details = tpm2.NewTPMUAsymScheme(alg, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})
	case tpm2.TPMAlgRSAPSS:
		details = tpm2.NewTPMUAsymScheme(alg, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: tpm2.TPMAlgSHA256})
	}
	r.ak.Type, r.akKey = tpm2.TPMAlgRSA, key
	r.ak.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048,
		Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull}, Scheme: tpm2.TPMTRSAScheme{Scheme: alg, Details: details}})
	r.ak.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
	r.sign = func(digest []byte) tpm2.TPMTSignature { return r.rsaSignature(alg, digest) }
}

func (r *rig) rsaSignature(alg tpm2.TPMAlgID, digest []byte) tpm2.TPMTSignature {
	var opts crypto.SignerOpts = crypto.SHA256
	if alg == tpm2.TPMAlgRSAPSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	}
	sig, err := rsaKey().Sign(rand.Reader, digest, opts)
	if err != nil {
		r.t.Fatal(err)
	}
	return tpm2.TPMTSignature{SigAlg: alg, Signature: tpm2.NewTPMUSignature(alg,
		&tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: sig}})}
}

func (r *rig) ecSignature(key *ecdsa.PrivateKey, hash tpm2.TPMIAlgHash, digest []byte) tpm2.TPMTSignature {
	var opts crypto.Hash = crypto.SHA256
	if len(digest) == crypto.SHA384.Size() {
		opts = crypto.SHA384
	}
	der, err := key.Sign(nil, digest, opts) // without randomness it is always the same (RFC 6979)
	if err != nil {
		r.t.Fatal(err)
	}
	var sig struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &sig); err != nil {
		r.t.Fatal(err)
	}
	return tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgECDSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{Hash: hash,
		SignatureR: tpm2.TPM2BECCParameter{Buffer: sig.R.Bytes()}, SignatureS: tpm2.TPM2BECCParameter{Buffer: sig.S.Bytes()}})}
}

func (r *rig) name(p *tpm2.TPMTPublic) tpm2.TPM2BName {
	name, err := tpm2.ObjectName(p)
	if err != nil {
		r.t.Fatal(err)
	}
	return *name
}

// evidence puts together what the rig says by now.
func (r *rig) evidence() attest.Evidence {
	r.t.Helper()
	a := tpm2.TPMSAttest{Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify, ExtraData: tpm2.TPM2BData{Buffer: r.nonce},
		QualifiedSigner: r.name(&r.ak), FirmwareVersion: 7, ClockInfo: tpm2.TPMSClockInfo{Safe: true},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: r.name(&r.key), QualifiedName: r.name(&r.key)})}
	if r.attestation != nil {
		r.attestation(&a)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: device}}, r.csrKey)
	if err != nil {
		r.t.Fatal(err)
	}
	e := attest.Evidence{Version: attest.Version, EK: tpm2.Marshal(r.ek), AK: tpm2.Marshal(r.ak), Key: tpm2.Marshal(r.key),
		Attestation: tpm2.Marshal(a), CSR: csr, Nonce: r.nonce,
		EKCertificate: r.certify(r.ekTemplate, r.maker, r.ekPublic).Raw}
	e.Signature = r.signature(e.Attestation)
	return e
}

func (r *rig) signature(message []byte) []byte {
	digest := sha256.Sum256(message)
	if r.sign != nil {
		return tpm2.Marshal(r.sign(digest[:]))
	}
	return tpm2.Marshal(r.ecSignature(r.akKey.(*ecdsa.PrivateKey), tpm2.TPMAlgSHA256, digest[:]))
}

func (r *rig) options() attest.Options {
	roots := x509.NewCertPool()
	roots.AddCert(r.maker)
	return attest.Options{EKRoots: roots, Nonce: r.nonce, Now: now}
}
