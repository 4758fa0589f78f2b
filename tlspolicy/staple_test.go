package tlspolicy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"reflect"
	"testing"
	"time"
)

// A reply is an OCSP response of the test's making: good, for the day of now,
// signed by the issuer.
type reply struct {
	ID      certID
	Good    asn1.Flag `asn1:"tag:0,optional"`
	Revoked revoked   `asn1:"tag:1,optional"`
	This    time.Time `asn1:"generalized"`
	Next    time.Time `asn1:"generalized,explicit,tag:0,optional"`
}

type (
	certID struct {
		Hash      pkix.AlgorithmIdentifier
		Name, Key []byte
		Serial    *big.Int
	}
	revoked struct {
		Time time.Time `asn1:"generalized"`
	}
	replyData struct {
		Responder  asn1.RawValue
		ProducedAt time.Time `asn1:"generalized"`
		Replies    []reply
	}
	signedReply struct {
		Data      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	response struct {
		Status asn1.Enumerated
		Bytes  struct {
			Type asn1.ObjectIdentifier
			Body []byte
		} `asn1:"explicit,tag:0"`
	}
)

// respond makes a response about a certificate, changed by change.
func respond(t testing.TB, cert, issuer *x509.Certificate, key crypto.Signer, change func(*reply)) []byte {
	t.Helper()
	must := func(b []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(issuer.RawSubjectPublicKeyInfo, &info); err != nil {
		t.Fatal(err)
	}
	name, public := sha1.Sum(issuer.RawSubject), sha1.Sum(info.Key.RightAlign())
	r := reply{Good: true, This: now.Add(-2 * time.Hour), Next: now.Add(12 * time.Hour),
		ID: certID{pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}, Parameters: asn1.NullRawValue}, name[:], public[:], cert.SerialNumber}}
	if change != nil {
		change(&r)
	}
	data := must(asn1.Marshal(replyData{ProducedAt: r.This, Replies: []reply{r},
		Responder: asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 1, IsCompound: true, Bytes: issuer.RawSubject}}))
	algorithm := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	if _, ok := key.(*ecdsa.PrivateKey); ok {
		algorithm = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	}
	sum := sha256.Sum256(data)
	signature := must(key.Sign(rand.Reader, sum[:], crypto.SHA256))
	var out response
	out.Bytes.Type = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
	out.Bytes.Body = must(asn1.Marshal(signedReply{asn1.RawValue{FullBytes: data}, pkix.AlgorithmIdentifier{Algorithm: algorithm},
		asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}}))
	return must(asn1.Marshal(out))
}

// staples are good responses for the certificates that h sends, by index.
func (h *hospital) staples(c *chain) [][]byte {
	h.t.Helper()
	issuers := []struct {
		cert *x509.Certificate
		key  crypto.Signer
	}{{c.root, h.rootKey}, {c.issuing, h.issuingKey}, {c.between, h.betweenKey}}
	sent := h.send(c)
	all := make([][]byte, len(sent))
	for i, cert := range sent {
		for _, issuer := range issuers {
			if issuer.cert == nil || !bytes.Equal(cert.RawIssuer, issuer.cert.RawSubject) || bytes.Equal(cert.RawIssuer, cert.RawSubject) {
				continue
			}
			all[i] = respond(h.t, cert, issuer.cert, issuer.key, nil)
		}
	}
	if h.staple != nil {
		all = h.staple(c, all)
	}
	return all
}

// stapled puts responses into a state as the overlay would: the field is there
// in a build with the overlay only.
func stapled(state *tls.ConnectionState, staples [][]byte) {
	reflect.ValueOf(state).Elem().FieldByName("OCSPResponses").Set(reflect.ValueOf(staples))
}
