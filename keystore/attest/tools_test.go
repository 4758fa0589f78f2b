package attest_test

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/bedside-gateway/gatewayd/keystore/attest"
	"github.com/bedside-gateway/gatewayd/keystore/attest/attesttest"
)

// tools runs tpm2-tools on the TPM, in a folder of its own. No resource manager
// stands before swtpm, so that what a tool loaded is flushed after it.
type tools struct {
	t      *testing.T
	dir    string
	socket string
}

func (x tools) run(program string, args ...string) {
	x.t.Helper()
	x.once(program, args...)
	x.once("tpm2_flushcontext", "-t")
}

func (x tools) once(program string, args ...string) {
	x.t.Helper()
	cmd := exec.CommandContext(x.t.Context(), program, args...)
	cmd.Dir = x.dir
	cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=swtpm:path="+x.socket, "TPM2OPENSSL_TCTI=swtpm:path="+x.socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		x.t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
}

func (x tools) read(name string) []byte {
	x.t.Helper()
	b, err := os.ReadFile(filepath.Join(x.dir, name))
	if err != nil {
		x.t.Fatal(err)
	}
	return b
}

// sized is the contents of a TPM2B.
func (x tools) sized(name string) []byte {
	x.t.Helper()
	b := x.read(name)
	if len(b) < 2 || int(binary.BigEndian.Uint16(b)) != len(b)-2 {
		x.t.Fatalf("%s is no TPM2B", name)
	}
	return b[2:]
}

// Keys, names, areas, certificates and the request are made by tpm2-tools and
// openssl, and tpm2-tools opens the challenge.
func TestEvidenceOfTPM2Tools(t *testing.T) {
	tpm := theTPM(t, "tpm2_certify", "tpm2_activatecredential", "tpm2_makecredential", "openssl")
	for _, c := range []struct{ name, ek, ekHandle, certificate, algorithm, scheme, policy string }{
		{"an RSA EK and an ECC AK", "rsa", "0x81010001", "0x01c00002", "ecc", "ecdsa", "yes"},
		{"an RSA EK and an RSA AK with RSAPSS", "rsa", "0x81010001", "0x01c00002", "rsa", "rsapss", "yes"},
		{"a P-384 EK and an RSA AK with RSASSA", "ecc", "0x81010016", "0x01c00016", "rsa", "rsassa", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			x, nonce := tools{t, t.TempDir(), tpm.Socket}, random(t, 32)
			x.run("tpm2_readpublic", "-c", c.ekHandle, "-f", "tpmt", "-o", "ek.tpmt")
			x.run("tpm2_readpublic", "-c", c.ekHandle, "-f", "tss", "-o", "ek.pub")
			x.run("tpm2_nvread", "-C", "o", "-o", "ek.der", c.certificate)
			x.run("tpm2_createprimary", "-C", "o", "-G", "ecc256", "-c", "srk.ctx")
			ak := map[string]string{"ecc": "ecc256:ecdsa-sha256:null", "rsa": "rsa2048:" + c.scheme + "-sha256:null"}[c.algorithm]
			x.run("tpm2_create", "-C", "srk.ctx", "-G", ak, "-u", "ak.pub", "-r", "ak.priv",
				"-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda")
			x.run("tpm2_create", "-C", "srk.ctx", "-G", "ecc256", "-u", "key.pub", "-r", "key.priv",
				"-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign|noda")
			x.run("tpm2_load", "-C", "srk.ctx", "-u", "ak.pub", "-r", "ak.priv", "-c", "ak.ctx", "-n", "ak.name")
			x.run("tpm2_load", "-C", "srk.ctx", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx")
			x.run("tpm2_certify", "-c", "key.ctx", "-C", "ak.ctx", "-g", "sha256", "--scheme", c.scheme, "-f", "tss", "-o", "attest.bin", "-s", "attest.sig")
			x.run("tpm2_evictcontrol", "-C", "o", "-c", "key.ctx", keyHandle)
			x.run("tpm2_evictcontrol", "-C", "o", "-c", "ak.ctx", akHandle)
			e := attest.Evidence{Version: attest.Version, EK: x.read("ek.tpmt"), AK: x.sized("ak.pub"), Key: x.sized("key.pub"),
				EKCertificate: x.read("ek.der"), EKIntermediates: [][]byte{tpm.Issuer.Raw},
				Attestation: x.read("attest.bin"), Signature: x.read("attest.sig"), CSR: x.request(), Nonce: nonce}
			o := attest.Options{EKRoots: tpm.Roots, Nonce: nonce, Now: time.Now()}
			// tpm2_certify has a word of its own where the nonce should be.
			if _, err := attest.Verify(e, o); err == nil || !strings.Contains(err.Error(), "attestation: it was made for another nonce") {
				t.Errorf("an attestation without the nonce: %v", err)
			}
			e.Attestation, e.Signature = certify(t, tpm, nonce)
			x.run("tpm2_evictcontrol", "-C", "o", "-c", keyHandle)
			x.run("tpm2_evictcontrol", "-C", "o", "-c", akHandle)
			got, err := attest.Verify(e, o)
			if err != nil {
				t.Fatal(err)
			}
			if name := hex.EncodeToString(x.read("ak.name")); got.AKName != name {
				t.Errorf("the AK's name is %s, tpm2_load says %s", got.AKName, name)
			}
			x.opens(e, c.ekHandle, c.policy != "")
		})
	}
}

const keyHandle, akHandle = "0x81000100", "0x81000101"

// certify is TPM2_Certify with the nonce, for the keys that the tools made.
func certify(t *testing.T, tpm *attesttest.TPM, nonce []byte) (attestation, signature []byte) {
	t.Helper()
	auth := func(text string) tpm2.AuthHandle {
		handle, err := strconv.ParseUint(text, 0, 32)
		if err != nil {
			t.Fatal(err)
		}
		read, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(handle)}.Execute(tpm)
		if err != nil {
			t.Fatal(err)
		}
		return tpm2.AuthHandle{Handle: tpm2.TPMHandle(handle), Name: read.Name, Auth: tpm2.PasswordAuth(nil)}
	}
	certified, err := tpm2.Certify{ObjectHandle: auth(keyHandle), SignHandle: auth(akHandle),
		QualifyingData: tpm2.TPM2BData{Buffer: nonce}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	return certified.CertifyInfo.Bytes(), tpm2.Marshal(certified.Signature)
}

// request has the key sign a request by way of tpm2-openssl.
func (x tools) request() []byte {
	x.t.Helper()
	x.run("openssl", "req", "-provider", "tpm2", "-provider", "default", "-propquery", "?provider=tpm2",
		"-new", "-subj", "/CN="+device, "-key", "handle:"+keyHandle, "-outform", "DER", "-out", "key.csr")
	der := x.read("key.csr")
	if _, err := x509.ParseCertificateRequest(der); err != nil {
		x.t.Fatal(err)
	}
	return der
}

// opens has tpm2_activatecredential open our challenge.
func (x tools) opens(e attest.Evidence, ek string, policy bool) {
	x.t.Helper()
	secret := random(x.t, 32)
	blob, encrypted, err := attest.Challenge(e, secret)
	if err != nil {
		x.t.Fatal(err)
	}
	// The file of tpm2-tools: a magic number, a version, the two TPM2B.
	file := binary.BigEndian.AppendUint32(nil, 0xbadcc0de)
	file = binary.BigEndian.AppendUint32(file, 1)
	for _, part := range [][]byte{blob, encrypted} {
		file = append(binary.BigEndian.AppendUint16(file, uint16(len(part))), part...)
	}
	if err := os.WriteFile(filepath.Join(x.dir, "challenge"), file, 0o600); err != nil {
		x.t.Fatal(err)
	}
	auth := []string{}
	if policy {
		x.run("tpm2_startauthsession", "--policy-session", "-S", "session.ctx")
		x.run("tpm2_policysecret", "-S", "session.ctx", "-c", "e")
		auth = []string{"-P", "session:session.ctx"}
	}
	x.run("tpm2_activatecredential", append([]string{"-c", "ak.ctx", "-C", ek, "-i", "challenge", "-o", "opened"}, auth...)...)
	if policy {
		x.run("tpm2_flushcontext", "session.ctx")
	}
	if !bytes.Equal(x.read("opened"), secret) {
		x.t.Error("tpm2_activatecredential found another secret")
	}
}
