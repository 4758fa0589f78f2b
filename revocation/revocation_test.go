package revocation

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// A ca is a certificate with its key, and issues others.
type ca struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var serials int64 = 1000

// issue makes a certificate; parent nil makes it self-signed.
func issue(t testing.TB, parent *ca, key crypto.Signer, cn string, change func(*x509.Certificate)) *ca {
	t.Helper()
	serials++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serials), Subject: pkix.Name{CommonName: cn},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(90 * 24 * time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if change != nil {
		change(template)
	}
	signer, parentCert := key, template
	if parent != nil {
		signer, parentCert = parent.key, parent.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parentCert, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{cert, key}
}

func isCA(c *x509.Certificate) {
	c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign|x509.KeyUsageDigitalSignature
}

func isResponderCert(c *x509.Certificate) {
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	c.ExtraExtensions = []pkix.Extension{{Id: oidNoCheck, Value: []byte{5, 0}}}
}

// A hospital is a chain of three and what is needed to vouch for it.
type hospital struct {
	root, issuing, leaf, sibling, responder *ca
}

func newHospital(t testing.TB) *hospital {
	h := &hospital{}
	h.root = issue(t, nil, newKey(t), "root", isCA)
	h.issuing = issue(t, h.root, newKey(t), "issuing", isCA)
	h.leaf = issue(t, h.issuing, newKey(t), "platform.test", nil)
	h.sibling = issue(t, h.issuing, newKey(t), "device", nil)
	h.responder = issue(t, h.issuing, newKey(t), "responder", isResponderCert)
	return h
}

func (h *hospital) chain() []*x509.Certificate {
	return []*x509.Certificate{h.leaf.cert, h.issuing.cert, h.root.cert}
}

// A reply is an OCSP response to be made; the zero value with a signer is a good one.
type reply struct {
	signer     *ca
	embed      *x509.Certificate
	status     int
	serial     *big.Int
	this, next time.Duration
	produced   time.Duration
	hash       crypto.Hash
	extra      []pkix.Extension
}

func (r reply) for_(t testing.TB, cert, issuer *x509.Certificate) []byte {
	t.Helper()
	template := ocsp.Response{Status: r.status, SerialNumber: cert.SerialNumber, ThisUpdate: now.Add(-time.Hour + r.this), NextUpdate: now.Add(time.Hour + r.next),
		IssuerHash: r.hash, Certificate: r.embed, ExtraExtensions: r.extra}
	if r.serial != nil {
		template.SerialNumber = r.serial
	}
	if r.status == ocsp.Revoked {
		template.RevokedAt, template.RevocationReason = now.Add(-2*time.Hour), ocsp.KeyCompromise
	}
	der, err := ocsp.CreateResponse(issuer, r.signer.cert, template, r.signer.key)
	if err != nil {
		t.Fatal(err)
	}
	// The library stamps producedAt with the time of the machine: set it, and sign again.
	return rebuild(t, der, r.signer.key, func(b *basicResponse) { b.TBS.ProducedAt = now.Add(r.produced) })
}

// rebuild changes a response and signs it anew.
func rebuild(t testing.TB, der []byte, key crypto.Signer, change func(*basicResponse)) []byte {
	t.Helper()
	var outer ocspResponse
	if _, err := asn1.Unmarshal(der, &outer); err != nil {
		t.Fatal(err)
	}
	var basic basicResponse
	if _, err := asn1.Unmarshal(outer.Bytes.Response, &basic); err != nil {
		t.Fatal(err)
	}
	change(&basic)
	basic.TBS.Raw = nil
	tbs := marshal(t, basic.TBS)
	sum := sha256.Sum256(tbs)
	digest, opts := sum[:], crypto.SignerOpts(crypto.SHA256)
	if basic.Algorithm.Algorithm.Equal(asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}) {
		s := sha1.Sum(tbs)
		digest, opts = s[:], crypto.SHA1
	}
	sig, err := key.Sign(rand.Reader, digest, opts)
	if err != nil {
		t.Fatal(err)
	}
	basic.TBS.Raw = tbs
	basic.Signature = asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}
	outer.Bytes.Response = marshal(t, struct {
		TBS          asn1.RawValue
		Algorithm    pkix.AlgorithmIdentifier
		Signature    asn1.BitString
		Certificates []asn1.RawValue `asn1:"explicit,tag:0,optional"`
	}{asn1.RawValue{FullBytes: tbs}, basic.Algorithm, basic.Signature, basic.Certificates})
	return marshal(t, outer)
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (h *hospital) goodStaples(t testing.TB) [][]byte {
	return [][]byte{
		reply{signer: h.issuing}.for_(t, h.leaf.cert, h.issuing.cert),
		reply{signer: h.root}.for_(t, h.issuing.cert, h.root.cert),
	}
}

func TestTheZeroVerdictRefuses(t *testing.T) {
	if (Verdict{}).Good() || Refusal(nil) == nil || Refusal([]Verdict{{}}) == nil {
		t.Error("a zero verdict passes")
	}
	if v := Judge(nil, Evidence{}, now, Rules{}); Refusal(v) == nil {
		t.Error("an empty chain passes")
	}
	h := newHospital(t)
	if v := Judge(h.chain()[:1], Evidence{}, now, Rules{}); Refusal(v) == nil {
		t.Error("a chain of one passes")
	}
}

func TestEveryCertificateButTheRootNeedsItsResponse_B18(t *testing.T) {
	h := newHospital(t)
	good := h.goodStaples(t)
	if err := Refusal(Judge(h.chain(), Stapled(good), now, Rules{})); err != nil {
		t.Fatalf("the good chain is refused: %v", err)
	}
	for i := range good {
		staples := [][]byte{good[0], good[1]}
		staples[i] = nil
		v := Judge(h.chain(), Stapled(staples), now, Rules{})
		if v[i].Kind != Missing || v[1-i].Kind != Good {
			t.Errorf("without response %d: %v, %v", i, v[0], v[1])
		}
	}
	swapped := Judge(h.chain(), Stapled([][]byte{good[1], good[0]}), now, Rules{})
	if swapped[0].Good() || swapped[1].Good() {
		t.Errorf("swapped responses pass: %v", swapped)
	}
}

// Each row is a fault in the response for the leaf, and what the verdict must be.
func TestResponses(t *testing.T) {
	h := newHospital(t)
	other := newHospital(t)
	key := newKey(t)
	twin := issue(t, h.root, key, "issuing", isCA) // the same name, another key
	renamed := issue(t, h.root, h.issuing.key, "another", isCA)
	noEKU := issue(t, h.issuing, newKey(t), "plain", func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{{Id: oidNoCheck, Value: []byte{5, 0}}} })
	anyEKU := issue(t, h.issuing, newKey(t), "any", func(c *x509.Certificate) {
		isResponderCert(c)
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	})
	expired := issue(t, h.issuing, newKey(t), "old responder", func(c *x509.Certificate) {
		isResponderCert(c)
		c.NotAfter = now.Add(-time.Minute)
	})
	early := issue(t, h.issuing, newKey(t), "coming responder", func(c *x509.Certificate) {
		isResponderCert(c)
		c.NotBefore = now.Add(time.Minute)
	})
	unchecked := issue(t, h.issuing, newKey(t), "unchecked responder", func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	})
	foreign := issue(t, other.issuing, newKey(t), "responder", isResponderCert)
	grandchild := issue(t, h.root, newKey(t), "root's responder", isResponderCert)
	encipher := issue(t, h.issuing, newKey(t), "encipher", func(c *x509.Certificate) {
		isResponderCert(c)
		c.KeyUsage = x509.KeyUsageKeyEncipherment
	})
	critical := issue(t, h.issuing, newKey(t), "critical", func(c *x509.Certificate) {
		isResponderCert(c)
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
	})

	leaf, issuer := h.leaf.cert, h.issuing.cert
	direct := func(r reply) func() []byte {
		r.signer = h.issuing
		return func() []byte { return r.for_(t, leaf, issuer) }
	}
	by := func(signer *ca) func() []byte {
		return func() []byte { return reply{signer: signer, embed: signer.cert}.for_(t, leaf, issuer) }
	}
	changed := func(change func(*basicResponse)) func() []byte {
		return func() []byte {
			return rebuild(t, reply{signer: h.issuing}.for_(t, leaf, issuer), h.issuing.key, change)
		}
	}
	for _, test := range []struct {
		name string
		der  func() []byte
		want Kind
		word string
	}{
		{"good, signed by the issuer", direct(reply{}), Good, ""},
		{"good, CertID by SHA-256", direct(reply{hash: crypto.SHA256}), Good, ""},
		{"good, the issuer embedded", func() []byte { return reply{signer: h.issuing, embed: issuer}.for_(t, leaf, issuer) }, Good, ""},
		{"good, by a delegated responder", by(h.responder), Good, ""},
		{"good, thisUpdate within the skew", direct(reply{this: time.Hour + 4*time.Minute}), Good, ""},
		{"revoked", direct(reply{status: ocsp.Revoked}), Revoked, "key compromise"},
		{"revoked, by a delegated responder", func() []byte {
			return reply{signer: h.responder, embed: h.responder.cert, status: ocsp.Revoked}.for_(t, leaf, issuer)
		}, Revoked, "revoked at"},
		{"unknown", direct(reply{status: ocsp.Unknown}), Unknown, "does not know"},
		{"expired", direct(reply{next: -time.Hour - time.Second}), Stale, "expired at"},
		{"expires this very moment", direct(reply{next: -time.Hour}), Stale, "expired at"},
		{"no nextUpdate", changed(func(b *basicResponse) { b.TBS.Responses[0].NextUpdate = time.Time{} }), Stale, "no nextUpdate"},
		{"thisUpdate to come", direct(reply{this: time.Hour + 6*time.Minute}), Future, "our clock"},
		{"made in the future", direct(reply{produced: time.Hour}), Future, "our clock"},
		{"nextUpdate before thisUpdate", changed(func(b *basicResponse) {
			b.TBS.Responses[0].ThisUpdate, b.TBS.Responses[0].NextUpdate = now.Add(2*time.Minute), now.Add(time.Minute)
		}), Malformed, "before its thisUpdate"},
		{"another serial number", direct(reply{serial: big.NewInt(7)}), Mismatched, "another certificate"},
		{"another issuer of the same name", changed(func(b *basicResponse) {
			b.TBS.Responses[0].ID.IssuerKey = bytes.Repeat([]byte{1}, 20)
		}), Mismatched, "another certificate"},
		{"another issuer name of the same key", func() []byte {
			return rebuild(t, reply{signer: renamed}.for_(t, leaf, renamed.cert), h.issuing.key, func(b *basicResponse) {
				b.TBS.Responder.Bytes = issuer.RawSubject
				b.TBS.Responder.FullBytes = nil
				b.TBS.Responder.Tag, b.TBS.Responder.IsCompound = 1, true
			})
		}, Mismatched, "another certificate"},
		{"CertID with an unknown hash", changed(func(b *basicResponse) {
			b.TBS.Responses[0].ID.Hash.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 5}
		}), Mismatched, "another certificate"},
		{"signed by a sibling certificate", by(h.sibling), Unauthorised, "no OCSPSigning"},
		{"signed by the certificate itself", by(h.leaf), Unauthorised, "no OCSPSigning"},
		{"delegated signer without OCSPSigning", by(noEKU), Unauthorised, "no OCSPSigning"},
		{"delegated signer with anyExtendedKeyUsage", by(anyEKU), Unauthorised, "no OCSPSigning"},
		{"delegated signer expired", by(expired), Unauthorised, "valid from"},
		{"delegated signer not yet valid", by(early), Unauthorised, "valid from"},
		{"delegated signer that nothing says is not revoked", by(unchecked), Unauthorised, "itself was revoked"},
		{"delegated signer of another CA", by(foreign), Unauthorised, "not issued by the CA"},
		{"delegated signer of the root, for the issuing CA's certificate", by(grandchild), Unauthorised, "not issued by the CA"},
		{"delegated signer that may not sign", by(encipher), Unauthorised, "does not allow signatures"},
		{"delegated signer with an unknown critical extension", by(critical), Unsupported, "critical extension"},
		{"signed by a CA of the same name", func() []byte { return reply{signer: twin}.for_(t, leaf, issuer) }, BadSignature, "signature is wrong"},
		{"signed by the root for a certificate of the issuing CA", func() []byte { return reply{signer: h.root}.for_(t, leaf, issuer) }, Unauthorised, "responder"},
		{"the delegated signer is not embedded", func() []byte { return reply{signer: h.responder}.for_(t, leaf, issuer) }, Unauthorised, "responder"},
		{"a flipped bit in the signature", func() []byte {
			der := reply{signer: h.issuing}.for_(t, leaf, issuer)
			der[len(der)-3] ^= 1
			return der
		}, BadSignature, "signature is wrong"},
		{"good made of revoked, the signature kept", func() []byte {
			der := reply{signer: h.issuing, status: ocsp.Unknown}.for_(t, leaf, issuer)
			at := bytes.Index(der, []byte{0x82, 0x00, 0x18}) // unknown [2], then a time
			if at < 0 {
				t.Fatal("no status found")
			}
			der[at] = 0x80 // good [0]
			return der
		}, BadSignature, "signature is wrong"},
		{"signed with SHA-1", changed(func(b *basicResponse) { b.Algorithm.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1} }), Weak, "SHA-1"},
		{"signed with MD5", changed(func(b *basicResponse) { b.Algorithm.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 4} }), Weak, "not accepted"},
		{"an unknown critical extension of the response", changed(func(b *basicResponse) {
			b.TBS.Extensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}), Unsupported, "critical extension"},
		{"an unknown extension that is not critical", changed(func(b *basicResponse) {
			b.TBS.Extensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}}
		}), Good, ""},
		{"an unknown critical extension of the single response", changed(func(b *basicResponse) {
			b.TBS.Responses[0].Extensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}), Unsupported, "critical extension"},
		{"no single response", changed(func(b *basicResponse) { b.TBS.Responses = nil }), Mismatched, "another certificate"},
		{"ours is the second of two", changed(func(b *basicResponse) {
			foreign := b.TBS.Responses[0]
			foreign.ID.Serial = big.NewInt(7)
			b.TBS.Responses = append([]singleResponse{foreign}, b.TBS.Responses...)
		}), Good, ""},
		{"good and revoked for the same certificate", changed(func(b *basicResponse) {
			bad := b.TBS.Responses[0]
			bad.Good, bad.Revoked = false, revokedInfo{Time: now.Add(-time.Hour)}
			b.TBS.Responses = append(b.TBS.Responses, bad)
		}), Revoked, "revoked at"},
		{"a later version", changed(func(b *basicResponse) { b.TBS.Version = 1 }), Unsupported, "version"},
		{"try later", func() []byte { return ocsp.TryLaterErrorResponse }, Unsuccessful, "try later"},
		{"unauthorised", func() []byte { return ocsp.UnauthorizedErrorResponse }, Unsuccessful, "unauthorised"},
		{"empty success", func() []byte { return []byte{0x30, 3, 0x0a, 1, 0} }, Unsupported, "type"},
		{"garbage", func() []byte { return []byte("no such luck") }, Malformed, "no OCSP response"},
		{"rubbish behind the response", func() []byte { return append(reply{signer: h.issuing}.for_(t, leaf, issuer), 0) }, Malformed, "no OCSP response"},
		{"cut short", func() []byte {
			der := reply{signer: h.issuing}.for_(t, leaf, issuer)
			return der[:len(der)/2]
		}, Malformed, "no OCSP response"},
	} {
		t.Run(test.name, func(t *testing.T) {
			staples := h.goodStaples(t)
			staples[0] = test.der()
			v := Judge(h.chain(), Stapled(staples), now, Rules{})
			if v[0].Kind != test.want || !strings.Contains(v[0].Error(), test.word) {
				t.Errorf("%s: %v; want %s", v[0].Kind, v[0], test.want)
			}
			if test.want != Good && (v[0].Next == "" || v[0].Reason == "" || !strings.Contains(v[0].Error(), "platform.test")) {
				t.Errorf("the refusal names too little: %+v", v[0])
			}
			if !v[1].Good() {
				t.Errorf("the issuing CA's good response is refused: %v", v[1])
			}
			memory := &Memory{}
			for range 2 {
				if again := memory.Judge(h.chain(), staples, now, Rules{}); again[0].Kind != test.want {
					t.Errorf("with a memory: %s", again[0].Kind)
				}
			}
		})
	}
}

func TestAgeByPolicy(t *testing.T) {
	h := newHospital(t)
	v := Judge(h.chain(), Stapled(h.goodStaples(t)), now, Rules{MaxAge: 30 * time.Minute})
	if v[0].Kind != TooOld || v[1].Kind != TooOld {
		t.Errorf("%v", v)
	}
	if err := Refusal(Judge(h.chain(), Stapled(h.goodStaples(t)), now, Rules{MaxAge: 61 * time.Minute})); err != nil {
		t.Error(err)
	}
}

func TestAChainOutOfOrderIsNone(t *testing.T) {
	h := newHospital(t)
	chain := []*x509.Certificate{h.leaf.cert, h.root.cert, h.issuing.cert}
	for _, rules := range []Rules{{}, {PathVerified: true}} {
		v := Judge(chain, Stapled(h.goodStaples(t)), now, rules)
		if v[0].Kind != BadChain || v[1].Kind != BadChain {
			t.Errorf("%+v: %v", rules, v)
		}
	}
}

// Only who has verified the path may have its signatures passed over: an issuer
// of the same name is not enough.
func TestSignaturesOfAChainAreCheckedUnlessTheyWereBefore(t *testing.T) {
	h := newHospital(t)
	impostor := issue(t, h.root, newKey(t), "issuing", isCA)
	chain := []*x509.Certificate{h.leaf.cert, impostor.cert, h.root.cert}
	if v := Judge(chain, Evidence{}, now, Rules{}); v[0].Kind != BadChain || v[1].Kind != Missing {
		t.Errorf("%v", v)
	}
	if v := Judge(chain, Evidence{}, now, Rules{PathVerified: true}); v[0].Kind != Missing {
		t.Errorf("%v", v)
	}
	if err := Refusal(Judge(h.chain(), Stapled(h.goodStaples(t)), now, Rules{PathVerified: true})); err != nil {
		t.Error(err)
	}
}

func TestSignaturesByRSA(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	root := issue(t, nil, key, "RSA root", isCA)
	leaf := issue(t, root, newKey(t), "platform.test", nil)
	chain := []*x509.Certificate{leaf.cert, root.cert}
	for _, algorithm := range []x509.SignatureAlgorithm{x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA} {
		template := ocsp.Response{SerialNumber: leaf.cert.SerialNumber, ThisUpdate: now.Add(-time.Hour), NextUpdate: time.Now().Add(100 * 365 * 24 * time.Hour), SignatureAlgorithm: algorithm}
		der, err := ocsp.CreateResponse(root.cert, root.cert, template, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := Refusal(Judge(chain, Stapled([][]byte{der}), time.Now(), Rules{})); err != nil && time.Now().Before(leaf.cert.NotAfter) {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
}

func (h *hospital) crl(t testing.TB, by *ca, change func(*x509.RevocationList), revoked ...*ca) *x509.RevocationList {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour)}
	for _, r := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: r.cert.SerialNumber, RevocationTime: now.Add(-2 * time.Hour), ReasonCode: 4})
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, by.cert, by.key)
	if err != nil {
		t.Fatal(err)
	}
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	return crl
}

func scope(t testing.TB, p issuingDistributionPoint) func(*x509.RevocationList) {
	return func(l *x509.RevocationList) {
		l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: oidIssuingDistPoint, Critical: true, Value: marshal(t, p)})
	}
}

func TestCRLs(t *testing.T) {
	h := newHospital(t)
	other := newHospital(t)
	critical := func(id asn1.ObjectIdentifier) func(*x509.RevocationList) {
		return func(l *x509.RevocationList) {
			l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: id, Critical: true, Value: []byte{2, 1, 1}})
		}
	}
	damaged := h.crl(t, h.issuing, nil)
	damaged.Signature = bytes.Clone(damaged.Signature)
	damaged.Signature[9] ^= 1
	impostor := issue(t, nil, newKey(t), "issuing", isCA)
	for _, test := range []struct {
		name string
		crl  *x509.RevocationList
		want Kind
	}{
		{"good", h.crl(t, h.issuing, nil), Good},
		{"good, for end entities only", h.crl(t, h.issuing, scope(t, issuingDistributionPoint{OnlyUserCerts: true})), Good},
		{"revoked", h.crl(t, h.issuing, nil, h.sibling, h.leaf), Revoked},
		{"another is revoked", h.crl(t, h.issuing, nil, h.sibling), Good},
		{"of another CA", h.crl(t, other.issuing, nil), BadSignature}, // the same name
		{"of an impostor by name", h.crl(t, impostor, nil), BadSignature},
		{"of the root: not about it", h.crl(t, h.root, nil), Missing},
		{"expired", h.crl(t, h.issuing, func(l *x509.RevocationList) { l.NextUpdate = now.Add(-time.Second) }), Stale},
		{"not yet", h.crl(t, h.issuing, func(l *x509.RevocationList) { l.ThisUpdate = now.Add(10 * time.Minute) }), Future},
		{"delta", h.crl(t, h.issuing, critical(oidDeltaCRL)), Unsupported},
		{"unknown critical extension", h.crl(t, h.issuing, critical(asn1.ObjectIdentifier{1, 2, 3})), Unsupported},
		{"for CA certificates only", h.crl(t, h.issuing, scope(t, issuingDistributionPoint{OnlyCACerts: true})), Mismatched},
		{"for attribute certificates only", h.crl(t, h.issuing, scope(t, issuingDistributionPoint{OnlyAttributes: true})), Mismatched},
		{"indirect", h.crl(t, h.issuing, scope(t, issuingDistributionPoint{Indirect: true})), Unsupported},
		{"some reasons only", h.crl(t, h.issuing, scope(t, issuingDistributionPoint{OnlySomeReasons: asn1.BitString{Bytes: []byte{0x40}, BitLength: 2}})), Unsupported},
		{"damaged signature", damaged, BadSignature},
	} {
		t.Run(test.name, func(t *testing.T) {
			evidence := Stapled([][]byte{nil, h.goodStaples(t)[1]})
			evidence.CRLs = []*x509.RevocationList{test.crl}
			v := Judge(h.chain(), evidence, now, Rules{CRLs: true})
			if v[0].Kind != test.want {
				t.Errorf("%s: %v; want %s", v[0].Kind, v[0], test.want)
			}
			if v := Judge(h.chain(), evidence, now, Rules{}); v[0].Kind != Missing {
				t.Errorf("a CRL decided where only staples may (B18): %v", v[0])
			}
		})
	}
}

func TestAResponseDecidesBeforeACRL_A9(t *testing.T) {
	h := newHospital(t)
	evidence := Stapled(h.goodStaples(t))
	evidence.CRLs = []*x509.RevocationList{h.crl(t, h.issuing, nil, h.leaf)}
	if v := Judge(h.chain(), evidence, now, Rules{CRLs: true}); !v[0].Good() {
		t.Errorf("the CRL overruled the response: %v", v[0])
	}
	evidence.Responses[0] = []Response{{DER: ocsp.TryLaterErrorResponse}}
	if v := Judge(h.chain(), evidence, now, Rules{CRLs: true}); v[0].Kind != Revoked {
		t.Errorf("the backup did not decide: %v", v[0])
	}
}

func TestACRLVouchesForADelegatedSigner(t *testing.T) {
	h := newHospital(t)
	plain := issue(t, h.issuing, newKey(t), "responder", func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	})
	staples := h.goodStaples(t)
	staples[0] = reply{signer: plain, embed: plain.cert}.for_(t, h.leaf.cert, h.issuing.cert)
	for name, test := range map[string]struct {
		crl  *x509.RevocationList
		want Kind
	}{
		"not on the CRL": {h.crl(t, h.issuing, nil), Good},
		"on the CRL":     {h.crl(t, h.issuing, nil, plain), Unauthorised},
		"CRL expired":    {h.crl(t, h.issuing, func(l *x509.RevocationList) { l.NextUpdate = now }), Unauthorised},
	} {
		evidence := Stapled(staples)
		evidence.CRLs = []*x509.RevocationList{test.crl}
		if v := Judge(h.chain(), evidence, now, Rules{}); v[0].Kind != test.want {
			t.Errorf("%s: %v", name, v[0])
		}
	}
}

func TestAMemoryForgetsWithTime(t *testing.T) {
	h := newHospital(t)
	staples := h.goodStaples(t)
	var m Memory
	if err := Refusal(m.Judge(h.chain(), staples, now, Rules{})); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		at    time.Time
		rules Rules
		want  Kind
	}{
		"still fresh":     {now.Add(59 * time.Minute), Rules{}, Good},
		"expired":         {now.Add(time.Hour), Rules{}, Stale},
		"clock set back":  {now.Add(-2 * time.Hour), Rules{}, Future},
		"a tighter limit": {now, Rules{MaxAge: time.Minute}, TooOld},
	} {
		if v := m.Judge(h.chain(), staples, test.at, test.rules); v[0].Kind != test.want || v[1].Kind != test.want {
			t.Errorf("%s: %s, %s", name, v[0].Kind, v[1].Kind)
		}
	}
	m.Judge(h.chain(), staples, now, Rules{})
	if v := m.Judge(h.chain(), [][]byte{staples[1], staples[0]}, now, Rules{}); v[0].Good() || v[1].Good() {
		t.Error("the memory answered for another certificate")
	}
	for i := range 3 * memorySize {
		m.keep([32]byte{byte(i), byte(i >> 8)}, Verdict{Kind: Good, NextUpdate: now.Add(time.Hour)}, now)
	}
	if len(m.good) > memorySize {
		t.Errorf("the memory grew to %d", len(m.good))
	}
}

// What x/crypto/ocsp refuses by structure, we refuse; what we call good, it can read.
func FuzzResponse(f *testing.F) {
	h := newHospital(f)
	f.Add(reply{signer: h.issuing}.for_(f, h.leaf.cert, h.issuing.cert))
	f.Add(reply{signer: h.responder, embed: h.responder.cert, status: ocsp.Revoked}.for_(f, h.leaf.cert, h.issuing.cert))
	f.Add(ocsp.TryLaterErrorResponse)
	f.Fuzz(func(t *testing.T, der []byte) {
		v := Judge(h.chain(), Stapled([][]byte{der, nil}), now, Rules{})
		if !v[0].Good() {
			return
		}
		if r, err := ocsp.ParseResponse(der, nil); err != nil || r.Status != ocsp.Good || r.SerialNumber.Cmp(h.leaf.cert.SerialNumber) != 0 {
			t.Errorf("called good, but the library reads %+v, %v", r, err)
		}
	})
}

func FuzzCRL(f *testing.F) {
	h := newHospital(f)
	f.Add(h.crl(f, h.issuing, nil, h.leaf).Raw)
	f.Add(h.crl(f, h.issuing, scope(f, issuingDistributionPoint{OnlyUserCerts: true})).Raw)
	f.Fuzz(func(t *testing.T, der []byte) {
		crl, err := x509.ParseRevocationList(der)
		if err != nil {
			return
		}
		Judge(h.chain(), Evidence{CRLs: []*x509.RevocationList{crl}}, now, Rules{CRLs: true})
	})
}

func BenchmarkJudge(b *testing.B) {
	h := newHospital(b)
	staples := h.goodStaples(b)
	b.Run("three certificates, two responses", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := Refusal(Judge(h.chain(), Stapled(staples), now, Rules{})); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("remembered", func(b *testing.B) {
		var m Memory
		b.ReportAllocs()
		for b.Loop() {
			if err := Refusal(m.Judge(h.chain(), staples, now, Rules{})); err != nil {
				b.Fatal(err)
			}
		}
	})
}
