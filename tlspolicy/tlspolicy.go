package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"
)

type Client struct {
	ServerName string
	Roots      *x509.CertPool
	Identity   tls.Certificate
	Now        func() time.Time
}

type RefusalError struct {
	Rule, Certificate, Reason, Next string
	Err                             error
}

func (e *RefusalError) Error() string { return e.Reason }

func (c Client) Config() (*tls.Config, error) { return nil, errors.New("not yet") }
