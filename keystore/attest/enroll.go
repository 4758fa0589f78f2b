package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// A Device makes evidence of its key and opens challenges: keystore/tpm is one.
type Device interface {
	// Evidence is about the device's key, with the CA's nonce in it.
	Evidence(ctx context.Context, nonce []byte) (Evidence, error)
	// Activate opens a challenge by TPM2_ActivateCredential.
	Activate(ctx context.Context, credentialBlob, encryptedSecret []byte) ([]byte, error)
}

// The exchange has three steps, each a POST of JSON to the CA. A refusal is any
// status but 200, 429 and 503, with a line of text.
const (
	PathBegin    = "/attest/begin"    // nothing: a Begun
	PathEvidence = "/attest/evidence" // a Presented: a Challenged
	PathFinish   = "/attest/finish"   // a Finished: an Issued
)

type (
	// Begun is the CA's first answer.
	Begun struct {
		ID    string `json:"id"`    // of this exchange
		Nonce []byte `json:"nonce"` // for the evidence
	}
	// Presented is the device's evidence.
	Presented struct {
		ID       string          `json:"id"`
		Evidence json.RawMessage `json:"evidence"` // see Parse
	}
	// Challenged is what the TPM has to open.
	Challenged struct {
		CredentialBlob  []byte `json:"credential_blob"`  // contents of a TPM2B_ID_OBJECT
		EncryptedSecret []byte `json:"encrypted_secret"` // contents of a TPM2B_ENCRYPTED_SECRET
	}
	// Finished is what was in it.
	Finished struct {
		ID     string `json:"id"`
		Secret []byte `json:"secret"`
	}
	// Issued is the chain, in DER, leaf first and without its root.
	Issued struct {
		Chain [][]byte `json:"chain"`
	}
)

const (
	maxAnswer = 64 << 10 // bytes of JSON
	maxChain  = 8        // certificates
	maxText   = 200      // characters of the CA's explanation
)

// AddressError is a URL that cannot be a CA's: whoever configured it has to mend
// it, and to try again is of no use.
type AddressError struct{ URL, Reason string }

func (e *AddressError) Error() string { return fmt.Sprintf("CA %q: %s", e.URL, e.Reason) }

// Refused is the CA's no to a step of the exchange.
type Refused struct {
	Path   string // of the step
	Status int
	Text   string // the CA's, escaped and cut
}

func (r *Refused) Error() string {
	return fmt.Sprintf("%s: the CA refused with %d %s%s; %s", r.Path, r.Status, http.StatusText(r.Status), said(r.Text), r.next())
}

func (r *Refused) next() string {
	switch {
	case r.Status == http.StatusUnauthorized || r.Status == http.StatusForbidden:
		return "have the CA's operator admit this gateway and its TPM"
	case r.Status == http.StatusNotFound && r.Path == PathBegin:
		return "check the address of the CA: what answers there knows no attestation"
	case r.Status == http.StatusNotFound || r.Status == http.StatusConflict:
		return "begin anew: run gatewayd enroll attest again"
	case r.Status >= 500:
		return "try again later, or ask the CA's operator"
	}
	return "ask the CA's operator"
}

// Unavailable is a CA that answers nobody now (503), or not us so often (429):
// nothing is decided.
type Unavailable struct {
	Status int
	Text   string // the CA's, escaped and cut
}

func (u *Unavailable) Error() string {
	return fmt.Sprintf("the CA cannot answer now (%d %s)%s: try again later", u.Status, http.StatusText(u.Status), said(u.Text))
}

// Enroll has a certificate issued by the CA at the URL (https://HOST[:PORT], or
// the address of its EST server), and gives its chain in DER, leaf first. The client has to verify the CA's
// server, and has the time-outs. The leaf is for the key and the name of the
// device's request and each certificate is signed by the next; whether the last
// one leads to a root that is trusted is for the caller to judge. A URL that cannot
// work is an *AddressError, the CA's no a *Refused, and an *Unavailable CA may be
// asked again.
func Enroll(ctx context.Context, client *http.Client, url string, device Device) (chain [][]byte, err error) {
	base, err := baseURL(url)
	if err != nil {
		return nil, &AddressError{url, err.Error()}
	}
	chain, err = exchange(ctx, caller{client, base}, device)
	if err != nil {
		return nil, fmt.Errorf("attestation at %s: %w", base, err)
	}
	return chain, nil
}

func baseURL(text string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", errors.New("it is no URL: write https://HOST[:PORT]")
	case u.Scheme != "https":
		return "", errors.New("its scheme is not https: the CA has to prove itself by TLS")
	case u.Hostname() == "":
		return "", errors.New("it names no host")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("it has more than a host and a path")
	}
	path, _, _ := strings.Cut(u.EscapedPath(), "/.well-known/")
	return "https://" + u.Host + strings.TrimRight(path, "/"), nil
}

func exchange(ctx context.Context, ca caller, device Device) ([][]byte, error) {
	var begun Begun
	if err := ca.post(ctx, PathBegin, struct{}{}, &begun); err != nil {
		return nil, err
	}
	if n := len(begun.Nonce); n < minNonce || n > maxNonce {
		return nil, fmt.Errorf("the CA gave a nonce of %d bytes: %d to %d are taken", n, minNonce, maxNonce)
	}
	evidence, err := device.Evidence(ctx, begun.Nonce)
	if err != nil {
		return nil, fmt.Errorf("evidence of the key: %w", err)
	}
	text, err := evidence.Marshal()
	if err != nil {
		return nil, err
	}
	var challenged Challenged
	if err := ca.post(ctx, PathEvidence, Presented{begun.ID, text}, &challenged); err != nil {
		return nil, err
	}
	secret, err := device.Activate(ctx, challenged.CredentialBlob, challenged.EncryptedSecret)
	if err != nil {
		return nil, fmt.Errorf("the CA's challenge: %w", err)
	}
	defer clear(secret)
	var issued Issued
	if err := ca.post(ctx, PathFinish, Finished{begun.ID, secret}, &issued); err != nil {
		return nil, err
	}
	return issued.Chain, judge(issued.Chain, evidence.CSR)
}

// judge refuses a chain that is not for our request.
func judge(chain [][]byte, csr []byte) error {
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return fmt.Errorf("our own certificate request: %w", err)
	}
	if len(chain) == 0 || len(chain) > maxChain {
		return fmt.Errorf("the CA gave %d certificates: 1 to %d are taken", len(chain), maxChain)
	}
	all := make([]*x509.Certificate, len(chain))
	for i, der := range chain {
		if all[i], err = x509.ParseCertificate(der); err != nil {
			return fmt.Errorf("certificate %d of the CA's chain cannot be read: %w", i+1, err)
		}
		if i == 0 {
			continue
		}
		if err := all[i-1].CheckSignatureFrom(all[i]); err != nil {
			return fmt.Errorf("certificate %d of the CA's chain did not sign the one before it: %w", i+1, err)
		}
	}
	key, ok := request.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(all[0].PublicKey) {
		return fmt.Errorf("the certificate that the CA gave (serial number %x) is for another key than ours: nothing was installed", all[0].SerialNumber)
	}
	if got, want := all[0].Subject.CommonName, request.Subject.CommonName; got != want {
		return fmt.Errorf("the certificate that the CA gave is issued to %.80q, the request was for %q", got, want)
	}
	return nil
}

// A caller speaks with the CA.
type caller struct {
	client *http.Client
	base   string
}

func (c caller) post(ctx context.Context, path string, body, answer any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s: the answer broke off: %w", path, err)
	case len(text) > maxAnswer:
		return fmt.Errorf("%s: the answer has more than %d bytes", path, maxAnswer)
	case response.StatusCode != http.StatusOK:
		return refusal(path, response.StatusCode, quoted(text))
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("%s: the answer cannot be read: %w", path, err)
	}
	return nil
}

// refusal is the error of any status but 200.
func refusal(path string, status int, text string) error {
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		return &Unavailable{status, text}
	}
	return &Refused{path, status, text}
}

// quoted is the CA's explanation, safe to print.
func quoted(text []byte) string {
	words := []rune(strings.Join(strings.Fields(string(text)), " "))
	if len(words) == 0 {
		return ""
	}
	if len(words) > maxText {
		words = append(words[:maxText], '.', '.', '.')
	}
	return strconv.QuoteToASCII(string(words))
}

func said(text string) string {
	if text == "" {
		return ""
	}
	return ", saying " + text
}
