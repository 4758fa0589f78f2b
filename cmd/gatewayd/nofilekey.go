//go:build !development

package main

import "crypto/tls"

// fileKey is nil in a release: no private key comes from a file (A11, B19).
var fileKey func(certificate, key string) (tls.Certificate, error)
