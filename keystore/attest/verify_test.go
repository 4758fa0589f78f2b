package attest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/bedside-gateway/gatewayd/keystore/attest"
)

func TestGoodEvidenceIsTaken(t *testing.T) {
	for _, c := range []struct {
		name  string
		alter func(*rig)
	}{
		{"P-256 throughout", func(*rig) {}},
		{"an RSASSA attestation key", func(r *rig) { r.rsaAK(tpm2.TPMAlgRSASSA) }},
		{"an RSAPSS attestation key", func(r *rig) { r.rsaAK(tpm2.TPMAlgRSAPSS) }},
		{"a device key on P-384", func(r *rig) {
			r.deviceKey = ecKey(r.t, elliptic.P384())
			r.key, r.csrKey = signer(r.t, &r.deviceKey.PublicKey, false), r.deviceKey
		}},
		{"an attestation key on P-384 with SHA-384", func(r *rig) {
			key := ecKey(r.t, elliptic.P384())
			r.ak = signer(r.t, &key.PublicKey, true)
			r.ak.NameAlg, r.ak.Parameters = tpm2.TPMAlgSHA384, ecScheme(tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA384, tpm2.TPMECCNistP384)
			r.akKey = key
		}},
		{"a device key without a scheme of its own", func(r *rig) {
			r.key.Parameters = ecScheme(tpm2.TPMAlgNull, 0, tpm2.TPMECCNistP256)
		}},
		{"an EK certificate with a critical name of two kinds", func(r *rig) {
			x := alternativeName(r.t, "id:1")
			var all []asn1.RawValue
			if _, err := asn1.Unmarshal(x.Value, &all); err != nil {
				r.t.Fatal(err)
			}
			other := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte("tpm.test")}
			r.ekTemplate.ExtraExtensions = []pkix.Extension{names(r.t, other, all[0])}
		}},
		{"an EK certificate whose name is not critical", func(r *rig) { r.ekTemplate.ExtraExtensions[0].Critical = false }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			c.alter(r)
			e := r.evidence()
			if c.name == "an attestation key on P-384 with SHA-384" {
				sum := sha512.Sum384(e.Attestation)
				e.Signature = tpm2.Marshal(r.ecSignature(r.akKey.(*ecdsa.PrivateKey), tpm2.TPMAlgSHA384, sum[:]))
			}
			got, err := attest.Verify(e, r.options())
			if err != nil {
				t.Fatal(err)
			}
			if !r.deviceKey.PublicKey.Equal(got.Key) || got.CSR.Subject.CommonName != device || got.Firmware != 7 || got.TPM.Manufacturer == "" {
				t.Errorf("%+v", got)
			}
			if name := fmt.Sprintf("%x", r.name(&r.ak).Buffer); got.AKName != name {
				t.Errorf("the name of the AK is %s, not %s", got.AKName, name)
			}
		})
	}
}

// Each row makes one thing wrong, and everything that is signed over it right.
func TestEvidenceIsRefused(t *testing.T) {
	for _, c := range []struct {
		name, want string
		rig        func(*rig)
		evidence   func(*rig, *attest.Evidence)
		options    func(*attest.Options)
	}{
		{name: "of another version", want: "version 2", evidence: func(_ *rig, e *attest.Evidence) { e.Version = 2 }},
		{name: "for another nonce", want: "for another nonce", options: func(o *attest.Options) { o.Nonce = make([]byte, 32) }},
		{name: "for no nonce", want: "a nonce of 0 bytes", options: func(o *attest.Options) { o.Nonce = nil },
			evidence: func(_ *rig, e *attest.Evidence) { e.Nonce = nil }},
		{name: "for a short nonce", want: "a nonce of 15 bytes", rig: func(r *rig) { r.nonce = r.nonce[:15] }},
		{name: "with too many certificates", want: "9 intermediate", evidence: func(_ *rig, e *attest.Evidence) { e.EKIntermediates = make([][]byte, 9) }},

		{name: "without an EK", want: "endorsement key: the public area cannot be read", evidence: func(_ *rig, e *attest.Evidence) { e.EK = nil }},
		{name: "with something behind the EK", want: "endorsement key: the public area is followed", evidence: func(_ *rig, e *attest.Evidence) { e.EK = append(e.EK, 0) }},
		{name: "with a huge EK", want: "endorsement key: the public area has 3000 bytes", evidence: func(_ *rig, e *attest.Evidence) { e.EK = make([]byte, 3000) }},
		{name: "with an EK that is not restricted", want: "endorsement key: it is not restricted", rig: func(r *rig) { r.ek.ObjectAttributes.Restricted = false }},
		{name: "with an EK that does not decrypt", want: "endorsement key: it does not decrypt", rig: func(r *rig) { r.ek.ObjectAttributes.Decrypt = false }},
		{name: "with an EK that signs", want: "endorsement key: it signs", rig: func(r *rig) { r.ek.ObjectAttributes.SignEncrypt = true }},
		{name: "with an EK that can move", want: "endorsement key: it lacks fixedTPM", rig: func(r *rig) { r.ek.ObjectAttributes.FixedTPM = false }},
		{name: "with an EK that can be duplicated", want: "endorsement key: it lacks fixedParent", rig: func(r *rig) { r.ek.ObjectAttributes.FixedParent = false }},
		{name: "with an EK from outside", want: "endorsement key: it lacks sensitiveDataOrigin", rig: func(r *rig) { r.ek.ObjectAttributes.SensitiveDataOrigin = false }},
		{name: "with an EK named by SHA-1", want: "SHA-256, SHA-384 and SHA-512 are taken", rig: func(r *rig) { r.ek.NameAlg = tpm2.TPMAlgSHA1 }},
		{name: "with an EK off its curve", want: "endorsement key: its point is not on its curve", rig: func(r *rig) {
			xy := bytes.Repeat([]byte{1}, 64)
			r.ek.Unique = rawPoint(xy)
		}},
		{name: "with a symmetric EK", want: "endorsement key: it is of the kind 0x0008", rig: func(r *rig) {
			r.ek.Type = tpm2.TPMAlgKeyedHash
			r.ek.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull}})
			r.ek.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: make([]byte, 32)})
		}},

		{name: "without an EK certificate", want: "has no certificate, and its name", evidence: func(_ *rig, e *attest.Evidence) { e.EKCertificate = nil }},
		{name: "with a broken EK certificate", want: "certificate of the endorsement key cannot be read", evidence: func(_ *rig, e *attest.Evidence) { e.EKCertificate = e.EKCertificate[:100] }},
		{name: "with another TPM's EK certificate", want: "that of another key than the endorsement key", rig: func(r *rig) { r.ekPublic = ecKey(r.t, elliptic.P256()).Public() }},
		{name: "with an EK certificate of another maker", want: "no path leads to the roots of TPM makers", options: func(o *attest.Options) { o.EKRoots = x509.NewCertPool() }},
		{name: "to a CA that knows no maker", want: "knows no maker of TPMs", options: func(o *attest.Options) { o.EKRoots = nil }},
		{name: "with an EK certificate whose signature does not fit", want: "no path leads", evidence: func(_ *rig, e *attest.Evidence) { e.EKCertificate[len(e.EKCertificate)-1] ^= 1 }},
		{name: "with an EK certificate that has expired", want: "is not valid on 2026-03-01", rig: func(r *rig) { r.ekTemplate.NotAfter = now.Add(-time.Minute) }},
		{name: "with an EK certificate for something else", want: "lacks tcg-kp-EKCertificate", rig: func(r *rig) {
			r.ekTemplate.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 3}} // of an attestation key
		}},
		{name: "with an EK certificate for anything", want: "lacks tcg-kp-EKCertificate", rig: func(r *rig) { r.ekTemplate.UnknownExtKeyUsage = nil }},
		{name: "with an EK certificate that signs", want: "key usage is not that", rig: func(r *rig) { r.ekTemplate.KeyUsage = x509.KeyUsageDigitalSignature }},
		{name: "with an EK certificate of a CA", want: "that of a CA", rig: func(r *rig) { r.ekTemplate.IsCA = true }},
		{name: "with an EK certificate that names no TPM", want: "no subject alternative name", rig: func(r *rig) { r.ekTemplate.ExtraExtensions = nil }},
		{name: "with an EK certificate that names a host", want: "holds no directory name", rig: func(r *rig) {
			r.ekTemplate.ExtraExtensions = []pkix.Extension{names(r.t, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte("a.test")})}
		}},
		{name: "with an EK certificate without a maker", want: "does not say who made the TPM", rig: func(r *rig) {
			r.ekTemplate.ExtraExtensions = []pkix.Extension{alternativeName(r.t, "")}
		}},
		{name: "with an EK certificate that has another critical extension", want: "no path leads", rig: func(r *rig) {
			r.ekTemplate.ExtraExtensions = append(r.ekTemplate.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: asn1.NullBytes})
		}},
		{name: "with an intermediate certificate that is none", want: "intermediate certificate 1", evidence: func(_ *rig, e *attest.Evidence) { e.EKIntermediates = [][]byte{{0}} }},

		{name: "without an AK", want: "attestation key: the public area cannot be read", evidence: func(_ *rig, e *attest.Evidence) { e.AK = nil }},
		{name: "with an AK that signs anything", want: "attestation key: it is not restricted", rig: func(r *rig) { r.ak.ObjectAttributes.Restricted = false }},
		{name: "with an AK that does not sign", want: "attestation key: it does not sign", rig: func(r *rig) { r.ak.ObjectAttributes.SignEncrypt = false }},
		{name: "with an AK that decrypts", want: "attestation key: it decrypts", rig: func(r *rig) { r.ak.ObjectAttributes.Decrypt = true }},
		{name: "with an AK that can move", want: "attestation key: it lacks fixedTPM", rig: func(r *rig) { r.ak.ObjectAttributes.FixedTPM = false }},
		{name: "with an AK that can be duplicated", want: "attestation key: it lacks fixedParent", rig: func(r *rig) { r.ak.ObjectAttributes.FixedParent = false }},
		{name: "with an AK from outside", want: "attestation key: it lacks sensitiveDataOrigin", rig: func(r *rig) { r.ak.ObjectAttributes.SensitiveDataOrigin = false }},
		{name: "with an AK made for duplication", want: "attestation key: it has encryptedDuplication", rig: func(r *rig) { r.ak.ObjectAttributes.EncryptedDuplication = true }},
		{name: "with an AK bound to no scheme", want: "bound to the scheme 0x0010", rig: func(r *rig) {
			r.ak.Parameters = ecScheme(tpm2.TPMAlgNull, 0, tpm2.TPMECCNistP256)
		}},
		{name: "with an AK bound to ECDAA", want: "bound to the scheme 0x001a", rig: func(r *rig) {
			r.ak.Parameters = ecScheme(tpm2.TPMAlgECDAA, tpm2.TPMAlgSHA256, tpm2.TPMECCNistP256)
		}},
		{name: "with an AK that signs SHA-1", want: "signs hashes of the kind 0x0004", rig: func(r *rig) {
			r.ak.Parameters = ecScheme(tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA1, tpm2.TPMECCNistP256)
		}},
		{name: "with an RSA key of 1024 bits in disguise", want: "its modulus has 2047 bits, its parameters say 2048", rig: func(r *rig) {
			r.rsaAK(tpm2.TPMAlgRSASSA)
			r.ak.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: new(big.Int).Rsh(rsaKey().N, 1).Bytes()})
		}},
		{name: "with an even modulus", want: "its modulus is even", rig: func(r *rig) {
			r.rsaAK(tpm2.TPMAlgRSASSA)
			r.ak.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: new(big.Int).Sub(rsaKey().N, big.NewInt(1)).Bytes()})
		}},
		{name: "with an RSA exponent of 3", want: "its exponent is 3", rig: func(r *rig) {
			r.rsaAK(tpm2.TPMAlgRSASSA)
			parameters, err := r.ak.Parameters.RSADetail()
			if err != nil {
				r.t.Fatal(err)
			}
			parameters.Exponent = 3
		}},

		{name: "without an attestation", want: "attestation: it has 0 bytes", evidence: func(_ *rig, e *attest.Evidence) { e.Attestation = nil }},
		{name: "that no TPM made", want: "no TPM made it", evidence: func(r *rig, e *attest.Evidence) {
			e.Attestation[0] = 0xfe
			e.Signature = r.signature(e.Attestation)
		}},
		{name: "that is a quote", want: "it is of the kind 0x8018", rig: func(r *rig) {
			r.attestation = func(a *tpm2.TPMSAttest) {
				a.Type = tpm2.TPMSTAttestQuote
				a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{})
			}
		}},
		{name: "that is cut", want: "attestation: it cannot be read", evidence: func(r *rig, e *attest.Evidence) {
			e.Attestation = e.Attestation[:len(e.Attestation)-1]
			e.Signature = r.signature(e.Attestation)
		}},
		{name: "with something behind the attestation", want: "attestation: it is followed", evidence: func(r *rig, e *attest.Evidence) {
			e.Attestation = append(e.Attestation, 0)
			e.Signature = r.signature(e.Attestation)
		}},
		{name: "that was made for another nonce", want: "attestation: it was made for another nonce", rig: func(r *rig) {
			r.attestation = func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = bytes.Repeat([]byte{7}, 32) }
		}},
		{name: "that certifies another key", want: "attestation: it certifies the key of the name", rig: func(r *rig) {
			r.attestation = func(a *tpm2.TPMSAttest) {
				a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: r.name(&r.ak)})
			}
		}},
		{name: "without a signature", want: "signature of the attestation: it cannot be read", evidence: func(_ *rig, e *attest.Evidence) { e.Signature = nil }},
		{name: "with a huge signature", want: "signature of the attestation: it has 2000 bytes", evidence: func(_ *rig, e *attest.Evidence) { e.Signature = make([]byte, 2000) }},
		{name: "signed by another key", want: "the attestation key did not make it", rig: func(r *rig) {
			r.sign = func(digest []byte) tpm2.TPMTSignature {
				return r.ecSignature(r.deviceKey, tpm2.TPMAlgSHA256, digest)
			}
		}},
		{name: "signed over something else", want: "the attestation key did not make it", evidence: func(r *rig, e *attest.Evidence) { e.Signature = r.signature([]byte("else")) }},
		{name: "signed with a word about another hash", want: "the attestation key did not make it", rig: func(r *rig) {
			r.sign = func(digest []byte) tpm2.TPMTSignature {
				return r.ecSignature(r.akKey.(*ecdsa.PrivateKey), tpm2.TPMAlgSHA384, digest)
			}
		}},
		{name: "signed by RSAPSS with a word about another hash", want: "the attestation key did not make it", rig: func(r *rig) {
			r.rsaAK(tpm2.TPMAlgRSAPSS)
			r.sign = func(digest []byte) tpm2.TPMTSignature {
				s := r.rsaSignature(tpm2.TPMAlgRSAPSS, digest)
				sig, err := s.Signature.RSAPSS()
				if err != nil {
					r.t.Fatal(err)
				}
				sig.Hash = tpm2.TPMAlgSHA512
				return s
			}
		}},
		{name: "signed by RSASSA with a word about another hash", want: "the attestation key did not make it", rig: func(r *rig) {
			r.rsaAK(tpm2.TPMAlgRSASSA)
			r.sign = func(digest []byte) tpm2.TPMTSignature {
				s := r.rsaSignature(tpm2.TPMAlgRSASSA, digest)
				sig, err := s.Signature.RSASSA()
				if err != nil {
					r.t.Fatal(err)
				}
				sig.Hash = tpm2.TPMAlgSHA512
				return s
			}
		}},
		{name: "signed with another scheme than the key's", want: "its scheme is 0x0014, that of the attestation key 0x0016", rig: func(r *rig) {
			r.rsaAK(tpm2.TPMAlgRSAPSS)
			r.sign = func(digest []byte) tpm2.TPMTSignature { return r.rsaSignature(tpm2.TPMAlgRSASSA, digest) }
		}},
		{name: "signed by RSA in words only", want: "the attestation key did not make it", rig: func(r *rig) {
			r.rsaAK(tpm2.TPMAlgRSAPSS)
			r.sign = func(digest []byte) tpm2.TPMTSignature {
				s := r.rsaSignature(tpm2.TPMAlgRSASSA, digest)
				sig, err := s.Signature.RSASSA()
				if err != nil {
					r.t.Fatal(err)
				}
				return tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSAPSS, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSAPSS, sig)}
			}
		}},
		{name: "with something behind the signature", want: "signature of the attestation: it is followed", evidence: func(_ *rig, e *attest.Evidence) { e.Signature = append(e.Signature, 0) }},

		{name: "without a device key", want: "device key: the public area cannot be read", evidence: func(_ *rig, e *attest.Evidence) { e.Key = nil }},
		{name: "with a device key that can move", want: "device key: it lacks fixedTPM", rig: func(r *rig) { r.key.ObjectAttributes.FixedTPM = false }},
		{name: "with a device key that can be duplicated", want: "device key: it lacks fixedParent", rig: func(r *rig) { r.key.ObjectAttributes.FixedParent = false }},
		{name: "with an imported device key", want: "device key: it lacks sensitiveDataOrigin", rig: func(r *rig) { r.key.ObjectAttributes.SensitiveDataOrigin = false }},
		{name: "with a device key made for duplication", want: "device key: it has encryptedDuplication", rig: func(r *rig) { r.key.ObjectAttributes.EncryptedDuplication = true }},
		{name: "with a device key that does not sign", want: "device key: it does not sign", rig: func(r *rig) { r.key.ObjectAttributes.SignEncrypt = false }},
		{name: "with a device key that decrypts", want: "device key: it decrypts", rig: func(r *rig) { r.key.ObjectAttributes.Decrypt = true }},
		{name: "with a device key that is restricted", want: "device key: it is restricted", rig: func(r *rig) { r.key.ObjectAttributes.Restricted = true }},
		{name: "with a device key on P-521", want: "device key: its curve is P-521", rig: func(r *rig) {
			r.deviceKey = ecKey(r.t, elliptic.P521())
			r.key, r.csrKey = signer(r.t, &r.deviceKey.PublicKey, false), r.deviceKey
		}},

		{name: "without a request", want: "certificate request cannot be read", evidence: func(_ *rig, e *attest.Evidence) { e.CSR = nil }},
		{name: "with a huge request", want: "65536 are the most", evidence: func(_ *rig, e *attest.Evidence) { e.CSR = make([]byte, 70000) }},
		{name: "with a request that its key did not sign", want: "not signed by its own key", evidence: func(_ *rig, e *attest.Evidence) { e.CSR[len(e.CSR)-1] ^= 1 }},
		{name: "with a request for a key outside of the TPM", want: "another key than the one that the TPM certified", rig: func(r *rig) { r.csrKey = ecKey(r.t, elliptic.P256()) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			if c.rig != nil {
				c.rig(r)
			}
			e, o := r.evidence(), r.options()
			if c.evidence != nil {
				c.evidence(r, &e)
			}
			if c.options != nil {
				c.options(&o)
			}
			if got, err := attest.Verify(e, o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, without %q", err, c.want)
			} else if got.Key != nil {
				t.Error("a key comes with the refusal")
			}
		})
	}
}

// Each byte of these fields is under a signature, a hash or a comparison. The
// areas of EK and AK are not among them: their names go into the challenge,
// which then does not open.
func TestNoBitOfTheProofCanBeChanged(t *testing.T) {
	r := newRig(t)
	good := r.evidence()
	for _, f := range []struct {
		name  string
		field func(*attest.Evidence) *[]byte
	}{
		{"the device key", func(e *attest.Evidence) *[]byte { return &e.Key }},
		{"the attestation", func(e *attest.Evidence) *[]byte { return &e.Attestation }},
		{"the signature", func(e *attest.Evidence) *[]byte { return &e.Signature }},
		{"the request", func(e *attest.Evidence) *[]byte { return &e.CSR }},
		{"the nonce", func(e *attest.Evidence) *[]byte { return &e.Nonce }},
		{"the EK certificate", func(e *attest.Evidence) *[]byte { return &e.EKCertificate }},
	} {
		t.Run(f.name, func(t *testing.T) {
			for i := range *f.field(&good) {
				e := good
				changed := bytes.Clone(*f.field(&good))
				changed[i] ^= 1 << (i % 8)
				*f.field(&e) = changed
				if _, err := attest.Verify(e, r.options()); err == nil {
					t.Fatalf("byte %d was changed and nobody saw it", i)
				}
			}
		})
	}
}

func TestAnEKAllowedByNameNeedsNoCertificate(t *testing.T) {
	r := newRig(t)
	e, o := r.evidence(), r.options()
	e.EKCertificate, o.EKRoots = nil, nil
	name := fmt.Sprintf("%x", r.name(&r.ek).Buffer)
	o.AllowBareEK = func(asked string) bool { return asked == name }
	got, err := attest.Verify(e, o)
	if err != nil || got.EKCertificate != nil || got.EKName != name {
		t.Errorf("%v, %+v", err, got)
	}
	o.AllowBareEK = func(string) bool { return false }
	if _, err := attest.Verify(e, o); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("another name: %v", err)
	}
}

func TestChallengesThatCannotBeMade(t *testing.T) {
	for _, c := range []struct {
		name, want string
		alter      func(*rig)
		secret     int
	}{
		{"a short secret", "a secret of 15 bytes", nil, 15},
		{"a long secret", "a secret of 33 bytes", nil, 33},
		{"an EK that is not restricted", "it is not restricted", func(r *rig) { r.ek.ObjectAttributes.Restricted = false }, 32},
		{"an AK that is not restricted", "it is not restricted", func(r *rig) { r.ak.ObjectAttributes.Restricted = false }, 32},
		{"an EK without a cipher", "no challenge can be made for it", func(r *rig) {
			r.ek.Parameters = ecScheme(tpm2.TPMAlgNull, 0, tpm2.TPMECCNistP256)
		}, 32},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			if c.alter != nil {
				c.alter(r)
			}
			if _, _, err := attest.Challenge(r.evidence(), make([]byte, c.secret)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, without %q", err, c.want)
			}
		})
	}
}

func TestParseTakesItsOwnFormOnly(t *testing.T) {
	r := newRig(t)
	good, err := r.evidence().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	e, err := attest.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := attest.Verify(e, r.options()); err != nil {
		t.Error(err)
	}
	for _, c := range []struct{ name, text, want string }{
		{"nothing", "", "cannot be read"},
		{"another version", `{"version":2}`, "version 2"},
		{"no version", `{}`, "version 0"},
		{"a field that we do not know", `{"version":1,"pcr":[]}`, "unknown field"},
		{"two of them", string(good) + string(good), "followed by something else"},
		{"no base64", `{"version":1,"ek":"*"}`, "cannot be read"},
		{"a huge one", strings.Repeat(" ", 70000), "65536 are the most"},
		{"many certificates", `{"version":1,"ek_intermediates":["","","","","","","","",""]}`, "8 are the most"},
	} {
		if _, err := attest.Parse([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// FuzzVerify: whatever comes, the only evidence that is taken is that of the rig.
func FuzzVerify(f *testing.F) {
	r := newRig(f)
	good := r.evidence()
	text, err := good.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	rsaRig := newRig(f)
	rsaRig.nonce = bytes.Repeat([]byte{0x5a}, 32) // of another exchange
	rsaRig.rsaAK(tpm2.TPMAlgRSAPSS)
	if text, err = rsaRig.evidence().Marshal(); err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := attest.Parse(text)
		if err != nil {
			return
		}
		// Without the nonce and the maker's word nothing would be read further.
		e.Nonce = r.nonce
		o := r.options()
		o.AllowBareEK = func(string) bool { return true }
		if got, err := attest.Verify(e, o); err == nil && !r.deviceKey.PublicKey.Equal(got.Key) {
			t.Errorf("another key was taken: %+v", got)
		}
		_, _, _ = attest.Challenge(e, make([]byte, 32))
	})
}

// FuzzStructures mutates the TPM's structures themselves, with a signature that
// fits, so that the fuzzer gets behind it.
func FuzzStructures(f *testing.F) {
	r := newRig(f)
	good := r.evidence()
	rsaRig := newRig(f)
	rsaRig.nonce = bytes.Repeat([]byte{0x5a}, 32) // of another exchange
	rsaRig.rsaAK(tpm2.TPMAlgRSASSA)
	other := rsaRig.evidence()
	f.Add(good.EK, good.AK, good.Key, good.Attestation, good.Signature, good.EKCertificate)
	f.Add(other.EK, other.AK, other.Key, other.Attestation, other.Signature, other.EKCertificate)
	f.Fuzz(func(t *testing.T, ek, ak, key, attestation, signature, certificate []byte) {
		e := attest.Evidence{Version: attest.Version, EK: ek, AK: ak, Key: key, Attestation: attestation, Signature: signature,
			EKCertificate: certificate, CSR: good.CSR, Nonce: r.nonce}
		o := r.options()
		if got, err := attest.Verify(e, o); err == nil && (!bytes.Equal(key, good.Key) || !r.deviceKey.PublicKey.Equal(got.Key)) {
			t.Error("another key was taken")
		}
		digest := sha256.Sum256(attestation)
		e.AK, e.Signature = good.AK, tpm2.Marshal(r.ecSignature(r.akKey.(*ecdsa.PrivateKey), tpm2.TPMAlgSHA256, digest[:]))
		o.AllowBareEK = func(string) bool { return true }
		if got, err := attest.Verify(e, o); err == nil && !r.deviceKey.PublicKey.Equal(got.Key) {
			t.Error("another key was taken")
		}
	})
}
