package main

import (
	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/sim/responder"
)

func (a *app) crlCommand() *cobra.Command {
	s := statusServer{app: a, name: "crl", address: "127.0.0.1:2561", known: responder.CRLAnswers(), make: responder.NewCRL}
	c := s.command()
	c.Use, c.Short = "crl --dir DIR", "Serve the CRLs of a simulated hospital"
	c.Long = "Serve the CRL of each CA that gatewaysim pki made in DIR, as http://ADDRESS/NAME.crl in DER, made anew for each\n" +
		"request. Certificates are told where it is with pki --crl-url http://127.0.0.1:2561/{ca}.crl.\n\n" + s.help("a CA's name in DIR/index.json; another\n"+
		"certificate's name, or its serial number, with revoked puts it on the list of its CA, with good takes it off")
	c.Example = "  gatewaysim crl --dir pki\n  gatewaysim crl --dir pki --answer ecc-root=stale\n" +
		"  curl -s http://127.0.0.1:2561/ecc-issuing.crl | openssl crl -inform DER -text -noout"
	return c
}
