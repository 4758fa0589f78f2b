package est

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
)

// maxCertificates bounds an answer. /cacerts may hold old and new CAs with
// their rollover certificates (RFC 7030, section 4.1.3).
const maxCertificates = 32

// maxDepth bounds the nesting of lengths that are given by their end: what may
// nest in a certs-only message stays below it.
const maxDepth = 16

// ParseResponse reads the body of an EST answer: a certs-only SignedData of
// CMS (RFC 5652, section 5) in base64. Line breaks are where they like to be
// (RFC 8951, section 3.1). Nothing is verified; the message has no signature.
func ParseResponse(body []byte) ([]*x509.Certificate, error) {
	der, err := decode(body)
	if err != nil {
		return nil, err
	}
	all, err := parseCertsOnly(der)
	if err != nil {
		return nil, fmt.Errorf("the answer is no certs-only message: %w", err)
	}
	return all, nil
}

func decode(body []byte) ([]byte, error) {
	text := bytes.Join(bytes.Fields(body), nil)
	der := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Decode(der, text)
	if err != nil {
		return nil, fmt.Errorf("the answer is not base64: %w", err)
	}
	return der[:n], nil
}

// The tags on the way to the certificates.
const (
	tagInteger     = 0x02
	tagOID         = 0x06
	tagSequence    = 0x30
	tagSet         = 0x31
	tagContext0    = 0xa0
	tagConstructed = 0x20
)

var (
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
)

// parseCertsOnly takes BER where servers send it (Java's libraries write
// indefinite lengths), so package encoding/asn1 cannot read the frame. The
// certificates themselves are DER. CRLs and signers behind them mean nothing
// here and are not read.
func parseCertsOnly(der []byte) ([]*x509.Certificate, error) {
	info, rest, err := next(der, tagSequence)
	if err != nil {
		return nil, fmt.Errorf("ContentInfo: %w", err)
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("%d bytes follow it", len(rest))
	}
	info, err = contentType(info, oidSignedData)
	if err != nil {
		return nil, err
	}
	explicit, _, err := next(info, tagContext0)
	if err != nil {
		return nil, fmt.Errorf("content: %w", err)
	}
	signed, _, err := next(explicit, tagSequence)
	if err != nil {
		return nil, fmt.Errorf("SignedData: %w", err)
	}
	return signedData(signed)
}

func contentType(b []byte, want asn1.ObjectIdentifier) (rest []byte, err error) {
	value, rest, err := next(b, tagOID)
	if err != nil {
		return nil, fmt.Errorf("contentType: %w", err)
	}
	der, err := asn1.Marshal(want)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(der[2:], value) {
		return nil, fmt.Errorf("its content type is not %v", want)
	}
	return rest, nil
}

// signedData skips version and digest algorithms: what they are is of use to
// those only who verify a signature.
func signedData(b []byte) ([]*x509.Certificate, error) {
	_, b, err := next(b, tagInteger)
	if err != nil {
		return nil, fmt.Errorf("version: %w", err)
	}
	if _, b, err = next(b, tagSet); err != nil {
		return nil, fmt.Errorf("digestAlgorithms: %w", err)
	}
	content, b, err := next(b, tagSequence)
	if err != nil {
		return nil, fmt.Errorf("encapContentInfo: %w", err)
	}
	if _, err := contentType(content, oidData); err != nil {
		return nil, fmt.Errorf("encapContentInfo: %w", err)
	}
	set, _, err := next(b, tagContext0)
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	return certificateSet(set)
}

func certificateSet(b []byte) (all []*x509.Certificate, err error) {
	for len(b) > 0 {
		if len(all) == maxCertificates {
			return nil, fmt.Errorf("it holds more than %d certificates", maxCertificates)
		}
		_, rest, err := next(b, tagSequence) // RFC 5652, section 10.2.2: other kinds have tags of their own
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(all)+1, err)
		}
		c, err := x509.ParseCertificate(b[:len(b)-len(rest)])
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(all)+1, err)
		}
		all, b = append(all, c), rest
	}
	if len(all) == 0 {
		return nil, errors.New("it holds no certificate")
	}
	return all, nil
}

// next is the contents of the element that b begins with, which has to have the
// tag, and what follows it.
func next(b []byte, tag byte) (contents, rest []byte, err error) {
	got, contents, rest, err := element(b, maxDepth)
	if err == nil && got != tag {
		err = fmt.Errorf("a tag %#02x is where %#02x should be", got, tag)
	}
	return contents, rest, err
}

var errEnds = errors.New("it ends in the middle of an element")

// element reads one element of BER (X.690, section 8.1) with a tag of one byte.
func element(b []byte, depth int) (tag byte, contents, rest []byte, err error) {
	if len(b) < 2 {
		return 0, nil, nil, errEnds
	}
	tag, length, b := b[0], int(b[1]), b[2:]
	switch {
	case tag&0x1f == 0x1f:
		return 0, nil, nil, errors.New("a tag of more than one byte")
	case length == 0x80:
		if tag&tagConstructed == 0 {
			return 0, nil, nil, errors.New("a primitive element without a length")
		}
		contents, rest, err = untilEnd(b, depth)
		return tag, contents, rest, err
	case length > 0x80:
		n := length & 0x7f
		if n > 4 || n > len(b) {
			return 0, nil, nil, errEnds
		}
		var long uint64
		for _, octet := range b[:n] {
			long = long<<8 | uint64(octet)
		}
		if long > uint64(len(b)-n) {
			return 0, nil, nil, errEnds
		}
		length, b = int(long), b[n:]
	}
	if length > len(b) {
		return 0, nil, nil, errEnds
	}
	return tag, b[:length], b[length:], nil
}

// untilEnd reads elements up to the end-of-contents octets (X.690, section 8.1.5).
func untilEnd(b []byte, depth int) (contents, rest []byte, err error) {
	if depth == 0 {
		return nil, nil, fmt.Errorf("elements nest more than %d deep", maxDepth)
	}
	for rest = b; len(rest) >= 2; {
		if rest[0] == 0 && rest[1] == 0 {
			return b[:len(b)-len(rest)], rest[2:], nil
		}
		if _, _, rest, err = element(rest, depth-1); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, errEnds
}
