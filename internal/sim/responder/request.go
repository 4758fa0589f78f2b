package responder

import (
	"crypto"
	_ "crypto/sha1" // hashes that a CertID may use
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strings"
)

// Limits of a request.
const (
	maxRequest  = 8 << 10
	maxCertIDs  = 32
	typeRequest = "application/ocsp-request"
)

// The ASN.1 of RFC 6960, section 4.1.1. What stands behind these elements, a
// nonce and a signature among it, is not looked at. golang.org/x/crypto/ocsp
// reads the first CertID only.
type (
	ocspRequest struct {
		TBS tbsRequest
	}
	tbsRequest struct {
		Version   int           `asn1:"optional,default:0,explicit,tag:0"`
		Requestor asn1.RawValue `asn1:"optional,tag:1"`
		List      []struct{ ID certID }
	}
	certID struct {
		Raw       asn1.RawContent
		Hash      pkix.AlgorithmIdentifier
		NameHash  []byte
		KeyHash   []byte
		SerialNum *big.Int
	}
)

var hashes = map[string]crypto.Hash{
	"1.3.14.3.2.26":          crypto.SHA1,
	"2.16.840.1.101.3.4.2.1": crypto.SHA256,
	"2.16.840.1.101.3.4.2.2": crypto.SHA384,
	"2.16.840.1.101.3.4.2.3": crypto.SHA512,
}

// parseRequest is the list of certificates asked about, never empty.
func parseRequest(der []byte) ([]certID, error) {
	var r ocspRequest
	if rest, err := asn1.Unmarshal(der, &r); err != nil {
		return nil, fmt.Errorf("no OCSP request: %w", err)
	} else if len(rest) > 0 {
		return nil, fmt.Errorf("%d bytes stand behind the OCSP request", len(rest))
	}
	switch n := len(r.TBS.List); {
	case r.TBS.Version != 0:
		return nil, fmt.Errorf("version %d of OCSP requests: only version 1 is defined", r.TBS.Version+1)
	case n == 0:
		return nil, errors.New("the OCSP request asks about no certificate")
	case n > maxCertIDs:
		return nil, fmt.Errorf("the OCSP request asks about %d certificates, at most %d are answered", n, maxCertIDs)
	}
	ids := make([]certID, len(r.TBS.List))
	for i, item := range r.TBS.List {
		ids[i] = item.ID
	}
	return ids, nil
}

// readRequest takes the DER from the body of a POST or the path of a GET (RFC
// 6960, appendix A.1).
func readRequest(w http.ResponseWriter, r *http.Request) ([]certID, error) {
	switch r.Method {
	case http.MethodGet:
		return parsePath(r.URL.EscapedPath())
	case http.MethodPost:
		if t := r.Header.Get("Content-Type"); t != typeRequest {
			return nil, fmt.Errorf("content type %q, want %s", t, typeRequest)
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
		if err != nil {
			return nil, err
		}
		return parseRequest(body)
	}
	return nil, fmt.Errorf("method %s: OCSP has GET and POST", r.Method)
}

// parsePath finds the request behind the responder's own path, of which it
// knows nothing. Base64 has slashes too, and not every client escapes them.
func parsePath(path string) ([]certID, error) {
	if len(path) > maxRequest {
		return nil, fmt.Errorf("the path has %d bytes, at most %d are read", len(path), maxRequest)
	}
	first := errors.New("the path holds no OCSP request in base64")
	for rest, more := path, true; more; {
		_, rest, more = strings.Cut(rest, "/")
		text, err := url.PathUnescape(rest)
		if err != nil || !strings.HasPrefix(text, "M") { // as every SEQUENCE begins
			continue
		}
		der, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
		if err != nil {
			continue
		}
		ids, err := parseRequest(der)
		if err == nil {
			return ids, nil
		}
		first = err
	}
	return nil, first
}

// of reports whether the CA issued what the id names, by both hashes.
func (ca *authority) of(id certID) bool {
	hash, known := hashes[id.Hash.Algorithm.String()]
	return known && ca.names[hash] == [2]string{string(id.NameHash), string(id.KeyHash)}
}

func (s *Server) authorityOf(id certID) *authority {
	for _, ca := range s.cas {
		if ca.of(id) {
			return ca
		}
	}
	return nil
}

func issuerHashes(cert *x509.Certificate) (map[crypto.Hash][2]string, error) {
	key, err := publicKeyBits(cert)
	if err != nil {
		return nil, err
	}
	names := map[crypto.Hash][2]string{}
	for _, hash := range hashes {
		sum := func(b []byte) string { h := hash.New(); h.Write(b); return string(h.Sum(nil)) }
		names[hash] = [2]string{sum(cert.RawSubject), sum(key)}
	}
	return names, nil
}

// publicKeyBits is what a CertID hashes: the key without tag, length and
// number of unused bits.
func publicKeyBits(cert *x509.Certificate) ([]byte, error) {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &info); err != nil {
		return nil, fmt.Errorf("public key of %q: %w", cert.Subject.CommonName, err)
	}
	return info.Key.RightAlign(), nil
}

// idOf names a certificate by SHA-1, the one hash that every peer understands.
func (ca *authority) idOf(serial *big.Int) certID {
	names := ca.names[crypto.SHA1]
	return certID{
		Hash:     pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}, Parameters: asn1.NullRawValue},
		NameHash: []byte(names[0]), KeyHash: []byte(names[1]), SerialNum: serial,
	}
}
