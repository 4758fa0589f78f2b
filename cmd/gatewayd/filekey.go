//go:build development

package main

import "github.com/bedside-gateway/gatewayd/keystore/keyfile"

// fileKey reads a development key. A release has none: it is built without the
// tag development.
var fileKey = keyfile.Load
