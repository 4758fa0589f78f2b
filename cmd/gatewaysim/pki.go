package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/bedside-gateway/gatewayd/internal/sim/pki"
	"github.com/bedside-gateway/gatewayd/observation"
)

func (a *app) pkiCommand() *cobra.Command {
	var dir, device string
	var days int
	var schemes []string
	var o pki.Options
	c := &cobra.Command{
		Use: "pki --dir DIR", Short: "Make the certificates of a simulated hospital", Args: none,
		Long: "Make roots, issuing CAs, platform and device certificates in both key schemes, and beside each good one those\n" +
			"that a peer has to refuse: revoked, expired, not yet valid, with a wrong name or key usage, of a revoked or a\n" +
			"foreign CA. DIR/index.json says what each file is. The keys are for tests: never trust these roots anywhere else.",
		Example: "  gatewaysim pki --dir pki\n  openssl verify -CAfile pki/roots.pem -untrusted pki/platform.pem pki/platform.pem",
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if err := required(c, "dir"); err != nil {
				return err
			}
			if days < 1 {
				return usage("--days %d: it is at least 1", days)
			}
			o.Lifetime = time.Duration(days) * 24 * time.Hour
			if o.Device, err = observation.ParseEUI64(device); err != nil {
				return usage("--device: %w", err)
			}
			for _, s := range schemes {
				o.Schemes = append(o.Schemes, pki.Scheme(s))
			}
			return a.makePKI(dir, o)
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "`folder` to write into; it is made where it is not there")
	c.Flags().StringVar(&o.Platform, "name", pki.DefaultPlatform, "DNS `name` of the platform")
	c.Flags().StringVar(&device, "device", pki.DefaultDevice.String(), "`EUI-64` of the gateway, the common name of device certificates")
	c.Flags().IntVar(&days, "days", int(pki.DefaultLifetime/(24*time.Hour)), "validity of platform and device certificates in `days`")
	c.Flags().StringSliceVar(&schemes, "schemes", []string{string(pki.ECC), string(pki.RSA)}, "key `schemes` to make: ecc, rsa")
	c.Flags().StringVar(&o.OCSPURL, "ocsp-url", "", "OCSP responder `URL` to put into certificates; {ca} becomes the name of the issuing CA")
	c.Flags().StringVar(&o.CRLURL, "crl-url", "", "CRL `URL` to put into certificates; {ca} likewise")
	return c
}

func (a *app) makePKI(dir string, o pki.Options) error {
	p, err := pki.New(o)
	if err != nil {
		return err
	}
	if err := p.Write(dir); err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, e := range p.Entries {
		fmt.Fprintf(w, "%s\t%s\t%s\n", e.File, e.Verdict, e.Why)
	}
	return w.Flush()
}
