package tlspolicy

import (
	"context"
	"crypto"
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"
)

// A KeyError is a handshake that came to nothing because our own key did not
// sign: the peer has not been asked whether it takes us.
type KeyError struct{ Err error }

func (e *KeyError) Error() string { return "the gateway's own key does not sign: " + e.Err.Error() }
func (e *KeyError) Unwrap() error { return e.Err }

// Handshake makes the client's side of a handshake over raw, which stays the
// caller's. Errors are those of package tls, but for a *KeyError: of a key that
// does not sign package tls gives the text only, and it looks like a fault of
// the session.
func Handshake(ctx context.Context, raw net.Conn, config *tls.Config) (*tls.Conn, error) {
	own := config.Clone()
	var fault atomic.Pointer[KeyError]
	if ask := config.GetClientCertificate; ask != nil {
		own.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, err := ask(r)
			if err != nil {
				return nil, err
			}
			return witnessed(c, &fault), nil
		}
	}
	conn := tls.Client(raw, own)
	err := conn.HandshakeContext(ctx)
	if err == nil {
		return conn, nil
	}
	if e := fault.Load(); e != nil {
		return nil, e
	}
	return nil, err
}

// witnessed is a certificate whose key leaves word of its failure.
func witnessed(c *tls.Certificate, fault *atomic.Pointer[KeyError]) *tls.Certificate {
	signer, ok := c.PrivateKey.(crypto.Signer)
	if !ok {
		return c
	}
	one := *c
	one.PrivateKey = witness{signer, fault}
	return &one
}

type witness struct {
	crypto.Signer
	fault *atomic.Pointer[KeyError]
}

func (w witness) Sign(random io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	signature, err := w.Signer.Sign(random, digest, o)
	if err != nil {
		w.fault.Store(&KeyError{err})
	}
	return signature, err
}
