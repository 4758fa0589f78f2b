package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bedside-gateway/gatewayd/drivers"
	"github.com/bedside-gateway/gatewayd/drivers/port"
	"github.com/bedside-gateway/gatewayd/keystore/tpm"
	"github.com/bedside-gateway/gatewayd/mdc"
)

// asker is a driver whose devices answer when asked, on a line or over UDP.
type asker struct{ drivers.Driver }

func (asker) Info() drivers.Info {
	return drivers.Info{Name: "asker", Title: "a device that answers", UDPPort: 24105,
		Options: []drivers.Option{{Name: "poll", Default: "1s", Explain: "How often it is asked."}}}
}

func (asker) New(s drivers.Settings, _ drivers.Host) (drivers.Machine, error) {
	if p, ok := s.Options["poll"]; ok {
		if _, err := time.ParseDuration(p); err != nil {
			return nil, fmt.Errorf("option poll: %q is no duration", p)
		}
	}
	return nil, nil
}

// talker is a driver whose devices talk unasked, on a line only.
type talker struct{ asker }

func (talker) Info() drivers.Info {
	return drivers.Info{Name: "talker", Title: "a device that talks", Passive: true}
}

func root(t testing.TB, ca bool, until time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test Root"},
		NotBefore: until.Add(-time.Hour), NotAfter: until, IsCA: ca, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// crl is an empty CRL in PEM form, with the certificate of its issuer.
func crl(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, IsCA: true, BasicConstraintsValid: true, SubjectKeyId: []byte{1}, KeyUsage: x509.KeyUsageCRLSign}
	made, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), NextUpdate: time.Now().Add(time.Hour)}, c, key)
	if err != nil {
		t.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: signed}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: made})...)
}

func der(t testing.TB, text []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("no PEM")
	}
	return block.Bytes
}

func options(t testing.TB) Options {
	t.Helper()
	known, err := drivers.NewRegistry(asker{}, talker{})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{
		"/etc/g/roots.pem": root(t, true, now.Add(time.Hour)),
		"/etc/g/old.pem":   root(t, true, now.Add(-time.Hour)),
		"/etc/g/leaf.pem":  root(t, false, now.Add(time.Hour)),
		"/etc/g/key.pem":   pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{1}}),
		"/etc/g/empty.pem": nil,
		"/etc/g/a.crl":     crl(t),
		"/etc/g/a.der":     der(t, crl(t)),
	}
	return Options{Drivers: known, Now: now, ReadFile: func(name string) ([]byte, error) {
		if name == "/etc/g/secret.pem" {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
		}
		if b, ok := files[name]; ok {
			return b, nil
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}, Identity: func(certificate, key string) error {
		if certificate != "/etc/g/device.pem" || key != "/etc/g/device.key" {
			return fmt.Errorf("%s does not fit %s; take the pair that was made together", key, certificate)
		}
		return nil
	}}
}

const good = `
[gateway]
name = "GW_DEMO"
eui64 = "0123456789ABCDEF"

[identity]
certificate = "device.pem"
key = "device.key"
insecure_file_key = true

[[destination]]
name = "platform"
address = "platform.test:2575"
trust = "roots.pem"

[[port]]
name = "bed-1"
device = "udp://10.0.0.7"
driver = "asker"
`

func TestAFileWithOnlyTheRequiredKeysHasTheDefaults(t *testing.T) {
	c, err := Parse("/etc/g/gatewayd.toml", []byte(good), options(t))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{Path: "/etc/g/gatewayd.toml", Version: 1,
		Gateway: Gateway{Name: "GW_DEMO", EUI64: 0x0123456789ABCDEF, StateDir: "/var/lib/gatewayd",
			StatusSocket: "/run/gatewayd/status.sock", LogLevel: slog.LevelInfo, Zone: time.UTC},
		Identity: Identity{TPM: "/dev/tpmrm0", KeyType: "ecc-p256", Certificate: "/etc/g/device.pem", Key: "/etc/g/device.key", InsecureFileKey: true},
		Spool:    Spool{64 << 20, 72 * time.Hour},
		Destinations: []Destination{{Name: "platform", Address: "platform.test:2575", Trust: "/etc/g/roots.pem",
			AcceptAck: "AL", ApplicationAck: "NE", Interval: time.Minute, Include: []mdc.Code{}, Exclude: []mdc.Code{},
			Patient: "device", AckTimeout: 10 * time.Second, ConnectTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute, OnReject: "continue"}},
		Ports:    []Port{{Name: "bed-1", Device: "udp://10.0.0.7", Driver: "asker", Options: map[string]string{}}},
		Warnings: c.Warnings,
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0].String(), "DEVELOPMENT KEY IN USE") {
		t.Errorf("warnings %v, want the development key to be shouted", c.Warnings)
	}
}

func TestEveryKeyArrives(t *testing.T) {
	text := `
version = 1
gateway = { name = "G", eui64 = "01-23-45-67-89-ab-cd-ef", facility = "F", state_dir = "state", status_socket = "s.sock", log_level = "debug", timezone = "Europe/Berlin" }
[spool]
max_bytes = "2GiB"
max_age = "1h30m"
[identity]
certificate = "device.pem"
key = "device.key"
insecure_file_key = true
[[destination]]
name = "p"
address = "[::1]"
connect = "127.0.0.1:9"
trust = "roots.pem"
receiving_application = "RA"
receiving_facility = "RF"
accept_ack = "NE"
application_ack = "AL"
interval = "0s"
include = ["MDC_PULS_OXIM_SAT_O2", 147842]
exclude = ["MDC_TEMP"]
waveforms = true
patient = "omit"
assigning_authority = "AA"
ack_timeout = "1s"
connect_timeout = "2s"
idle_timeout = "3s"
pacing = "4ms"
staple_max_age = "24h"
on_reject = "halt"
strict_ack = true
[[port]]
name = "bed-1"
device = "/dev/serial/by-path/x"
driver = "talker"
line = "9600 7E2"
listen_only = true
allow_simulated = true
device_eui64 = "0000000000000001"
device_timezone = "UTC"
record = "r.bin"
location.point_of_care = "ICU"
location.room = "R"
location.bed = "B"
location.facility = "F"
[[port]]
name = "bed-2"
device = "tcp://server:4001"
driver = "asker"
[port.options]
poll = "2s"
`
	c, err := Parse("/etc/g/gatewayd.toml", []byte(text), options(t))
	if err != nil {
		t.Fatal(err)
	}
	berlin, _ := time.LoadLocation("Europe/Berlin")
	spo2, _ := mdc.LookupName("MDC_PULS_OXIM_SAT_O2")
	temp, _ := mdc.LookupName("MDC_TEMP")
	c.Warnings = nil
	want := &Config{Path: "/etc/g/gatewayd.toml", Version: 1,
		Gateway:  Gateway{"G", 0x0123456789ABCDEF, "F", "/etc/g/state", "/etc/g/s.sock", slog.LevelDebug, berlin},
		Identity: Identity{TPM: "/dev/tpmrm0", KeyType: "ecc-p256", Certificate: "/etc/g/device.pem", Key: "/etc/g/device.key", InsecureFileKey: true},
		Spool:    Spool{2 << 30, 90 * time.Minute},
		Destinations: []Destination{{"p", "[::1]:2575", "127.0.0.1:9", "/etc/g/roots.pem", "RA", "RF", "NE", "AL", 0,
			[]mdc.Code{spo2.Code, 147842}, []mdc.Code{temp.Code}, true, "omit", "AA",
			time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Millisecond, 24 * time.Hour, "halt", true}},
		Ports: []Port{
			{"bed-1", "/dev/serial/by-path/x", "talker", port.Line{Baud: 9600, DataBits: 7, Parity: port.Even, StopBits: 2}, true, true, 1, time.UTC,
				"/etc/g/r.bin", Location{"ICU", "R", "B", "F"}, map[string]string{}},
			{Name: "bed-2", Device: "tcp://server:4001", Driver: "asker", Options: map[string]string{"poll": "2s"}},
		}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestFaultsAreNamedWithTheirPlaceAndTheNextStep(t *testing.T) {
	for name, row := range map[string]struct{ old, new, want string }{
		"a misspelt key":                  {`trust =`, `turst =`, `:14:1: destination.turst: there is no such key; did you mean trust?`},
		"a key that is missing":           {`trust = "roots.pem"`, ``, `:11:3: destination.trust: is missing; add trust = … (file name)`},
		"an unknown section":              {`[identity]`, "[identiti]", `:6:2: identiti: there is no such key; did you mean identity?`},
		"a key far from any other":        {`[identity]`, "zzzzzzzzzz = 1\n[identity]", `:6:1: gateway.zzzzzzzzzz: there is no such key; here are possible: name, eui64`},
		"a number for a text":             {`"GW_DEMO"`, `7`, `:3:8: gateway.name: is a number; write it in quotes`},
		"a name too long for HD-1":        {`"GW_DEMO"`, `"GATEWAY_OF_THE_INTENSIVE_CARE"`, `:3:8: gateway.name: has 29 characters; write at most 20`},
		"a designator of two parts":       {`[identity]`, "facility = \"H^1.2\"\n[identity]", `gateway.facility: "H^1.2" is no designator; write a name, or`},
		"a designator with a long name":   {`[identity]`, "facility = \"HOSPITAL_OF_THE_WHOLE_CITY^1.2^ISO\"\n[identity]", `has a name of 26 characters; write at most 20`},
		"a control character":             {`"GW_DEMO"`, `"GW\u0007"`, `gateway.name: holds a control character`},
		"an EUI-64 of zeroes":             {`0123456789ABCDEF`, `0000000000000000`, `:4:9: gateway.eui64: "0000000000000000" is no EUI-64; write 16`},
		"a text for a flag":               {`insecure_file_key = true`, `insecure_file_key = "yes"`, `identity.insecure_file_key: is a text; write true or false`},
		"a file key that is not admitted": {`insecure_file_key = true`, ``, `:8:7: identity.key: a private key in a file can be copied by anyone who gets hold of it; on a development machine write insecure_file_key = true`},
		"a certificate without a key":     {"key = \"device.key\"\ninsecure_file_key = true", ``, `identity.certificate: the certificate of a key in the TPM is installed with gatewayd enroll install`},
		"a TPM that is nowhere":           {`[identity]`, "[identity]\ntpm = \"tpm0\"", `identity.tpm: "tpm0" is no address of a TPM; write a device such as /dev/tpmrm0`},
		"a kind of key that is none":      {`[identity]`, "[identity]\nkey_type = \"ecc-p521\"", `identity.key_type: "ecc-p521" is none of the choices`},
		"a CA without TLS":                {`[identity]`, "[identity]\nest_url = \"http://ca.test\"", `identity.est_url: "http://ca.test" is no address of an EST server`},
		"a CA whom nothing vouches for":   {`[identity]`, "[identity]\nest_url = \"https://ca.test\"", `identity.est_trust: is missing; name the PEM file`},
		"a CA with a leaf for a root":     {`[identity]`, "[identity]\nest_url = \"https://ca.test\"\nest_trust = \"leaf.pem\"", `identity.est_trust: /etc/g/leaf.pem certificate 1 in it`},
		"a CA whose roots are missing":    {`[identity]`, "[identity]\nest_url = \"https://ca.test\"\nest_trust = \"rots.pem\"", `identity.est_trust: /etc/g/rots.pem does not exist; relative names start at`},
		"approvals by nobody":             {`[identity]`, "[identity]\npolicy_approvals = \"a.json\"", `identity.policy_approvals: without policy_signer approves nothing`},
		"no certificate":                  {`certificate = "device.pem"`, ``, `identity.certificate: is missing`},
		"no key":                          {`key = "device.key"`, ``, `identity.key: is missing`},
		"a key that fits not":             {`"device.key"`, `"other.key"`, `identity.certificate: /etc/g/other.key does not fit`},
		"a section twice over":            {`[[destination]]`, `[destination]`, `:11:2: destination: is a section that may be there several times; write [[destination]]`},
		"a section in double brackets":    {`[identity]`, `[[identity]]`, `:6:3: identity: is a section that is there once; write [identity]`},
		"a value for a section":           {"\n[gateway]", "port = 3\n[gateway]", `port`},
		"an address without a host":       {`platform.test:2575`, `:2575`, `destination.address: ":2575" is no address; write host:port`},
		"an address with a wrong port":    {`platform.test:2575`, `platform.test:70000`, `destination.address: "platform.test:70000" has no valid port`},
		"an address with a space":         {`platform.test:2575`, `platform test:2575`, `is no address`},
		"a trust file that is not there":  {`roots.pem`, `rots.pem`, `:14:9: destination.trust: /etc/g/rots.pem does not exist; relative names start at`},
		"an empty trust file name":        {`trust = "roots.pem"`, `trust = ""`, `destination.trust: is empty; write a file name`},
		"an empty state folder":           {"[gateway]", "[gateway]\nstate_dir = \"\"", `gateway.state_dir: is empty; write a file name`},
		"a trust file without rights":     {`roots.pem`, `secret.pem`, `/etc/g/secret.pem may not be read; give the user`},
		"an empty trust file":             {`roots.pem`, `empty.pem`, `/etc/g/empty.pem holds no PEM certificate; put the root`},
		"a leaf for a root":               {`roots.pem`, `leaf.pem`, `/etc/g/leaf.pem certificate 1 in it, "Test Root", is no CA; put the root`},
		"a key for a root":                {`roots.pem`, `key.pem`, `holds a PEM block "EC PRIVATE KEY"; a trust file holds certificates only`},
		"no acknowledgement at all":       {`trust =`, "accept_ack = \"NE\"\ntrust =", `:14:14: destination.accept_ack: with accept_ack "NE" and application_ack "NE" the platform never says that it has a message; write AL`},
		"acknowledgement on error only":   {`trust =`, "accept_ack = \"NE\"\napplication_ack = \"ER\"\ntrust =", `never says`},
		"a choice that is none":           {`trust =`, "patient = \"unknwon\"\ntrust =", `destination.patient: "unknwon" is none of the choices; write "unknown"`},
		"a duration without unit":         {`trust =`, "interval = \"60\"\ntrust =", `destination.interval: "60" is no duration; write a number with its unit`},
		"a duration as a number":          {`trust =`, "interval = 60\ntrust =", `destination.interval: is a number; write it in quotes, such as "60s"`},
		"a duration out of range":         {`trust =`, "ack_timeout = \"1h\"\ntrust =", `destination.ack_timeout: 1h is out of range; write 100ms to 5m`},
		"a negative duration":             {`trust =`, "pacing = \"-1s\"\ntrust =", `-1s is out of range`},
		"a size without unit":             {`[[port]]`, "[spool]\nmax_bytes = \"64\"\n[[port]]", `spool.max_bytes: "64" is no size; write a whole number with its unit`},
		"a size out of range":             {`[[port]]`, "[spool]\nmax_bytes = \"1B\"\n[[port]]", `spool.max_bytes: "1B" is out of range; write 1MiB to 64GiB`},
		"a size beyond all numbers":       {`[[port]]`, "[spool]\nmax_bytes = \"9999999999999GiB\"\n[[port]]", `is no size`},
		"a term that is none":             {`trust =`, "include = [\"MDC_NO_SUCH\", 3, 147842]\ntrust =", `destination.include: entry 1 "MDC_NO_SUCH" is no term of the nomenclature`},
		"a number that is no term":        {`trust =`, "include = [3]\ntrust =", `destination.include: entry 1 3 is no term; write the context-free number`},
		"a term both ways":                {`trust =`, "include = [147842]\nexclude = [147842]\ntrust =", `destination.exclude: MDC_ECG_CARD_BEAT_RATE is in include as well`},
		"a term as a flag":                {`trust =`, "include = [true]\ntrust =", `entry 1 is true or false; write`},
		"a date":                          {`"GW_DEMO"`, `1979-05-27`, `gateway.name: is a value of kind localdate; write it in quotes`},
		"an unknown driver":               {`"asker"`, `"askr"`, `:19:10: port.driver: there is no driver "askr"; did you mean asker?`},
		"a driver far from any":           {`"asker"`, `"zzzzzzz"`, `there is no driver "zzzzzzz"; there are asker, talker`},
		"UDP for a serial driver":         {`"asker"`, `"talker"`, `:18:10: port.device: the driver talker does not run over UDP; write a serial path`},
		"listening to a silent device":    {`driver =`, "listen_only = true\ndriver =", `port.listen_only: devices of the driver asker answer only when asked`},
		"a line for a network port":       {`driver =`, "line = \"9600 8N1\"\ndriver =", `port.line: only a serial line has settings; take line out`},
		"a line that is none":             {`driver =`, "line = \"fast\"\ndriver =", `port.line: line "fast": these are no line settings; write`},
		"a device that is none":           {`udp://10.0.0.7`, `ttyUSB0`, `:18:10: port.device: device "ttyUSB0"; write the whole path`},
		"a misspelt option":               {`driver = "asker"`, "driver = \"asker\"\n[port.options]\npol = 1", `:21:1: port.options.pol: the driver asker has no such option; did you mean poll?`},
		"an option of no driver":          {`driver = "asker"`, "driver = \"asker\"\n[port.options]\nzzzz = 1", `port.options.zzzz: the driver asker has no such option; it has poll`},
		"an option with a list":           {`driver = "asker"`, "driver = \"asker\"\n[port.options]\npoll = []", `port.options.poll: is a list; write a text`},
		"an option the driver refuses":    {`driver = "asker"`, "driver = \"asker\"\n[port.options]\npoll = \"soon\"", `port.options: option poll: "soon" is no duration; gatewayd check --explain`},
		"a misspelt location":             {`driver = "asker"`, "driver = \"asker\"\n[port.location]\nbedd = \"1\"", `port.location.bedd: there is no such key; did you mean bed?`},
		"a port name twice":               {`[[port]]`, "[[port]]\nname = \"bed-1\"\ndevice = \"tcp://a:1\"\ndriver = \"asker\"\n[[port]]", `:21:8: port.name: "bed-1" is there already, in line 17; each needs a name of its own`},
		"a device twice":                  {`[[port]]`, "[[port]]\nname = \"bed-0\"\ndevice = \"udp://10.0.0.7\"\ndriver = \"asker\"\n[[port]]", `port.device: "udp://10.0.0.7" is there already`},
		"a name unfit for a metric":       {`"bed-1"`, `"bed 1"`, `port.name: "bed 1" is no name; write 1 to 32 letters`},
		"a newer format":                  {"\n[gateway]", "version = 2\n[gateway]", `:1:11: version: 2 is out of range; write 1 to 1`},
		"a time zone that is none":        {`[identity]`, "timezone = \"Mars\"\n[identity]", `gateway.timezone: "Mars" is no time zone`},
		"a log level that is none":        {`[identity]`, "log_level = \"inof\"\n[identity]", `gateway.log_level: "inof" is no log level; write "info"`},
		"a socket path too long":          {`[identity]`, "status_socket = \"/" + strings.Repeat("a", 107) + "\"\n[identity]", `gateway.status_socket: has 108 bytes as a full path; a socket path has at most 107`},
		"a text without quotes":           {`"GW_DEMO"`, `GW_DEMO`, `:3:8: `},
		"a key twice":                     {`name = "GW_DEMO"`, "name = \"GW_DEMO\"\nname = \"B\"", `:4:`},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good, row.old, row.new, 1)
			_, err := Parse("/etc/g/gatewayd.toml", []byte(text), options(t))
			if err == nil {
				t.Fatal("the file was accepted")
			}
			if !strings.Contains(err.Error(), row.want) {
				t.Errorf("got\n%v\nwant %s", err, row.want)
			}
			for _, p := range err.(Problems) {
				if p.Line == 0 || p.Column == 0 || p.Next == "" {
					t.Errorf("%v: place or next step is missing", p)
				}
			}
		})
	}
}

// approved is a signer's public key, and approvals that it has made.
func approved(t testing.TB) (signer, approvals []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	a, err := tpm.Approve(key, map[uint][]byte{7: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	if approvals, err = json.Marshal([]tpm.Approval{a}); err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), approvals
}

func TestWhatKeysAreBoundToIsReadAsTheTPMWill(t *testing.T) {
	signer, approvals := approved(t)
	other, theirs := approved(t)
	for name, row := range map[string]struct {
		signer, approvals []byte // nil: the file is not there
		want              string // empty: nothing is wrong
	}{
		"a signer and what it approved":       {signer, approvals, ""},
		"another signer":                      {other, theirs, ""},
		"no signer's file":                    {nil, approvals, ":7:17: identity.policy_signer: /etc/g/signer.pem does not exist; relative names start at"},
		"a certificate for a signer":          {root(t, true, now), approvals, `identity.policy_signer: /etc/g/signer.pem: it has to hold one PEM block "PUBLIC KEY" and nothing else`},
		"an empty signer":                     {[]byte{}, approvals, "identity.policy_signer: /etc/g/signer.pem: it has to hold one PEM block"},
		"no file of approvals":                {signer, nil, ":8:20: identity.policy_approvals: /etc/g/approvals.json does not exist; relative names start at"},
		"an empty file of approvals":          {signer, []byte{}, "identity.policy_approvals: /etc/g/approvals.json: it holds no approvals"},
		"approvals by somebody else":          {signer, theirs, "identity.policy_approvals: /etc/g/approvals.json: of its 1 approvals none is by policy_signer"},
		"an approval that was changed":        {signer, bytes.Replace(approvals, []byte(`"pcrs":[7]`), []byte(`"pcrs":[99]`), 1), "identity.policy_approvals: /etc/g/approvals.json: approval 1: "},
		"neither signer nor file of approval": {nil, nil, "identity.policy_approvals: /etc/g/approvals.json does not exist"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			others := o.ReadFile
			o.ReadFile = func(file string) ([]byte, error) {
				b, mine := map[string][]byte{"/etc/g/signer.pem": row.signer, "/etc/g/approvals.json": row.approvals}[file]
				if mine && b != nil {
					return b, nil
				}
				return others(file)
			}
			text := strings.Replace(good, "[identity]", "[identity]\npolicy_signer = \"signer.pem\"\npolicy_approvals = \"approvals.json\"", 1)
			_, err := Parse("/etc/g/gatewayd.toml", []byte(text), o)
			if row.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			problems, _ := errors.AsType[Problems](err)
			if !strings.Contains(problems.Error(), row.want) {
				t.Errorf("got\n%v\nwant %s", err, row.want)
			}
			for _, p := range problems {
				if p.Line == 0 || p.Next == "" {
					t.Errorf("%v: place or next step is missing", p)
				}
			}
		})
	}
}

const south = good + `
[southbound]
trust = "roots.pem"
authorised = ["01-23-45-67-89-ab-cd-ef", "pump 7"]

[[southbound.identity]]
certificate = "device.pem"
key = "device.key"
insecure_file_key = true
`

func TestTheServerForDevicesHasItsDefaultsAndTakesEveryKey(t *testing.T) {
	c, err := Parse("/etc/g/gatewayd.toml", []byte(south), options(t))
	if err != nil {
		t.Fatal(err)
	}
	identity := ServerIdentity{KeyType: "ecc-p256", Certificate: "/etc/g/device.pem", Key: "/etc/g/device.key", InsecureFileKey: true}
	want := &Southbound{Listen: ":2575", Identities: []ServerIdentity{identity}, Trust: "/etc/g/roots.pem", CRLs: []string{}, Destinations: []string{},
		Authorised: []string{"0123456789ABCDEF", "pump 7"}, MinTLS: "1.2", MaxConnections: 256, MaxPerDevice: 4, MaxMessage: 1 << 20,
		HandshakeTimeout: 30 * time.Second, IdleTimeout: 10 * time.Minute, MessageTimeout: 30 * time.Second}
	if !reflect.DeepEqual(c.Southbound, want) {
		t.Errorf("got  %+v\nwant %+v", c.Southbound, want)
	}
	if got := c.Southbound.Queues(c.Destinations); !reflect.DeepEqual(got, []string{"platform"}) {
		t.Errorf("queues %v", got)
	}
	text := strings.Replace(south, "[southbound]", "[southbound]\nlisten = \"10.0.0.1\"\ncrls = [\"a.crl\", \"a.der\"]\ndestination = [\"platform\"]\nleaf_only_tls13 = true\n"+
		"min_tls = \"1.3\"\nmax_connections = 10\nmax_per_device = 1\nmax_message = \"64KiB\"\nhandshake_timeout = \"5s\"\nidle_timeout = \"1h\"\nmessage_timeout = \"10s\"", 1)
	if c, err = Parse("/etc/g/gatewayd.toml", []byte(text), options(t)); err != nil {
		t.Fatal(err)
	}
	want = &Southbound{Listen: "10.0.0.1:2575", Identities: []ServerIdentity{identity}, Trust: "/etc/g/roots.pem", CRLs: []string{"/etc/g/a.crl", "/etc/g/a.der"}, Destinations: []string{"platform"},
		Authorised: []string{"0123456789ABCDEF", "pump 7"}, LeafOnly13: true, MinTLS: "1.3", MaxConnections: 10, MaxPerDevice: 1, MaxMessage: 64 << 10,
		HandshakeTimeout: 5 * time.Second, IdleTimeout: time.Hour, MessageTimeout: 10 * time.Second}
	if !reflect.DeepEqual(c.Southbound, want) {
		t.Errorf("got  %+v\nwant %+v", c.Southbound, want)
	}
}

func TestFaultsOfTheServerForDevices(t *testing.T) {
	for name, row := range map[string]struct{ old, new, want string }{
		"no identity":                 {"[[southbound.identity]]", "[[other]]", "southbound.identity: is missing; devices connect to nobody"},
		"an identity that is a table": {"[[southbound.identity]]", "[southbound.identity]", "southbound.identity: is a section that may be there several times; write [[southbound.identity]]"},
		"a section in double":         {"[southbound]", "[[southbound]]", "southbound: is a section that is there once; write [southbound]"},
		"a key that fits not":         {"[[southbound.identity]]\ncertificate = \"device.pem\"", "[[southbound.identity]]\ncertificate = \"roots.pem\"", "southbound.identity.certificate: /etc/g/device.key does not fit"},
		"a key that is missing":       {"[[southbound.identity]]\ncertificate = \"device.pem\"", "[[southbound.identity]]", "southbound.identity.certificate: is missing"},
		"a file key":                  {"[[southbound.identity]]\ncertificate = \"device.pem\"\nkey = \"device.key\"\ninsecure_file_key = true", "[[southbound.identity]]\ncertificate = \"device.pem\"\nkey = \"device.key\"", "southbound.identity.key: a private key in a file can be copied"},
		"a store beside a file":       {"[[southbound.identity]]\n", "[[southbound.identity]]\nstore = \"ecc\"\n", "southbound.identity.store: is there beside a key in a file"},
		"the store of the gateway":    {"[[southbound.identity]]\ncertificate = \"device.pem\"\nkey = \"device.key\"\ninsecure_file_key = true", "[[southbound.identity]]\nstore = \"device\"", "southbound.identity.store: \"device\" is the gateway's own identity"},
		"a store without a name":      {"[[southbound.identity]]\ncertificate = \"device.pem\"\nkey = \"device.key\"\ninsecure_file_key = true", "[[southbound.identity]]\nstore = \"ecc\"", "southbound.identity.name: is missing; name the host"},
		"a name that is none":         {"[[southbound.identity]]\ncertificate = \"device.pem\"\nkey = \"device.key\"\ninsecure_file_key = true", "[[southbound.identity]]\nstore = \"ecc\"\nname = \"a b\"", "southbound.identity.name: \"a b\" is no host name"},
		"nobody authorised":           {"[\"01-23-45-67-89-ab-cd-ef\", \"pump 7\"]", "[]", "southbound.authorised: is empty, so that no device could connect"},
		"authorised is missing":       {"authorised =", "authorized =", "southbound.authorized: there is no such key; did you mean authorised?"},
		"a device twice":              {"\"pump 7\"", "\"0123456789abcdef\"", "southbound.authorised: entry 2, \"0123456789ABCDEF\", is there twice"},
		"a name with a separator":     {"pump 7", "pump|7", "southbound.authorised: entry 2 \"pump|7\" is no name of a device"},
		"a name that is a number":     {"\"pump 7\"", "7", "southbound.authorised: entry 2 is a number; write it in quotes"},
		"a destination that is none":  {"authorised =", "destination = [\"plattform\"]\nauthorised =", "southbound.destination: there is no destination \"plattform\""},
		"a port that is none":         {"authorised =", "listen = \":0\"\nauthorised =", "southbound.listen: \":0\" has no valid port"},
		"an address that is none":     {"authorised =", "listen = \"a b:1\"\nauthorised =", "southbound.listen: \"a b:1\" is no address"},
		"TLS 1.1":                     {"authorised =", "min_tls = \"1.1\"\nauthorised =", "southbound.min_tls: \"1.1\" is none of the choices"},
		"a CRL that is none":          {"authorised =", "crls = [\"roots.pem\"]\nauthorised =", "southbound.crls: /etc/g/roots.pem holds no CRL; put one there"},
		"a CRL that is a key":         {"authorised =", "crls = [\"key.pem\"]\nauthorised =", "southbound.crls: /etc/g/key.pem holds a PEM block"},
		"a CRL that is empty":         {"authorised =", "crls = [\"empty.pem\"]\nauthorised =", "southbound.crls: /etc/g/empty.pem holds no CRL that can be read"},
		"a CRL that is not there":     {"authorised =", "crls = [\"no.crl\"]\nauthorised =", "southbound.crls: /etc/g/no.crl does not exist"},
		"an empty trust file name":    {"[southbound]\ntrust = \"roots.pem\"", "[southbound]\ntrust = \"\"", "southbound.trust: is empty; write a file name"},
		"an empty CRL":                {"[southbound]", "[southbound]\ncrls = [\"\"]", "southbound.crls: entry 1"},
		"a trust file that is none":   {"[southbound]\ntrust = \"roots.pem\"", "[southbound]\ntrust = \"leaf.pem\"", "southbound.trust: /etc/g/leaf.pem certificate 1 in it"},
		"messages beyond the spool":   {"[southbound]", "[spool]\nmax_bytes = \"1MiB\"\n[southbound]", "southbound.max_message: such a message would take more than half of the spool"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(south, row.old, row.new, 1)
			_, err := Parse("/etc/g/gatewayd.toml", []byte(text), options(t))
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Fatalf("got\n%v\nwant %s", err, row.want)
			}
			for _, p := range err.(Problems) {
				if p.Line == 0 || p.Column == 0 || p.Next == "" {
					t.Errorf("%v: place or next step is missing", p)
				}
			}
		})
	}
}

func TestAllProblemsComeOutOfOneRun(t *testing.T) {
	text := `
[gateway]
nam = "x"
eui64 = "0"
timezone = 5
[spool]
max_age = "never"
[[destination]]
name = "a"
address = "a b"
trust = "rots.pem"
interval = "1"
[[destination]]
name = "a"
[[port]]
driver = "askr"
`
	_, err := Parse("/etc/g/gatewayd.toml", []byte(text), options(t))
	problems, ok := errors.AsType[Problems](err)
	if !ok {
		t.Fatalf("got %v, want problems", err)
	}
	var lines []int
	for _, p := range problems {
		if !p.Warning {
			lines = append(lines, p.Line)
		}
	}
	if want := []int{2, 3, 4, 5, 7, 10, 11, 12, 13, 13, 14, 15, 15, 16}; !reflect.DeepEqual(lines, want) {
		t.Errorf("problems in lines %v, want %v:\n%v", lines, want, err)
	}
}

func TestAnOldRootAndARecordingAreWarnings(t *testing.T) {
	text := strings.NewReplacer("roots.pem", "old.pem", `driver =`, "record = \"r\"\nallow_simulated = true\ndriver =").Replace(good)
	c, err := Parse("/etc/g/gatewayd.toml", []byte(text), options(t))
	if err != nil {
		t.Fatal(err)
	}
	got := Problems(c.Warnings).Error()
	for _, want := range []string{`the root "Test Root" expired on 2026-01-02`, "patient identifiers included", "never use this on a ward"} {
		if !strings.Contains(got, want) {
			t.Errorf("warnings are\n%s\nwant %q", got, want)
		}
	}
}

func TestAFileThatCannotBeReadSaysWhy(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big.toml")
	if err := os.WriteFile(big, make([]byte, MaxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none.toml"): "there is no such file",
		dir:                             "is a directory",
		big:                             "is this the right file?",
	} {
		if _, err := Load(path, options(t)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func TestExplainFindsKeysBySectionNameAndNearest(t *testing.T) {
	known := options(t).Drivers
	for key, want := range map[string]string{
		"interval":             "destination.interval  (duration from 0s to 24h; default \"60s\")",
		"destination.interval": "How often the values of a device become a message",
		"port.location":        "port.location.bed  (text of at most 20 characters",
		"gateway.name":         "required",
		"port.options":         "poll  (default \"1s\")",
		"gateway":              "gateway.state_dir",
	} {
		got, err := Explain(key, known)
		if err != nil || !strings.Contains(got, want) {
			t.Errorf("%s: %v\n%s\nwant %q", key, err, got, want)
		}
	}
	if _, err := Explain("intervall", known); err == nil || !strings.Contains(err.Error(), "did you mean interval?") {
		t.Errorf("got %v, want the nearest key", err)
	}
}

func TestEveryKeyHasAKindAndAMeaningAndItsDefaultIsValid(t *testing.T) {
	for _, e := range Entries() {
		if e.Kind == "" || len(e.Meaning) < 10 || !strings.HasSuffix(e.Meaning, ".") {
			t.Errorf("%s is not explained: %+v", e.Key, e)
		}
	}
}

func TestSizesReadBackAsTheyAreWritten(t *testing.T) {
	for text, bytes := range map[string]int64{"512KiB": 512 << 10, "64MiB": 64 << 20, "1.5GiB": 3 << 29, "7B": 7} {
		if got := FormatSize(bytes); got != text {
			t.Errorf("FormatSize(%d) = %s, want %s", bytes, got, text)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Add(south)
	f.Add(tunnelSection)
	f.Add(tunnelSection + "connect = \"[::1]:2576\"\n[[tunnel]]\nlisten = \"0.0.0.0:2576\"\nmacs = [1]\n[[tunnel.platform]]\ndefault = true\nserver_names = [\"a\", 1]")
	f.Add(strings.ReplaceAll(good, "[", "[["))
	f.Add("a.b = 1\na.c = {d = [{e = 1}]}\n[[a.f]]\n[a.f.g]")
	f.Add("port = [{name = 1}, 2]\n[identity]\nkey = [[]]")
	f.Add("port = []\ndestination = [[]]\ngateway = []")
	o := options(f)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("/etc/g/gatewayd.toml", []byte(text), o)
		if (c == nil) == (err == nil) {
			t.Fatalf("config %v with error %v", c, err)
		}
		problems, _ := errors.AsType[Problems](err)
		for _, p := range problems {
			if p.What == "" || strings.ContainsAny(p.String(), "\n\r") {
				t.Fatalf("%q is not a line that says something", p.String())
			}
		}
	})
}

func TestABrokenFileStillTellsWhereItsGatewayIs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "g.toml")
	text := "[gateway]\nstate_dir = \"s\"\nstatus_socket = \"/run/x.sock\"\nnonsense = 1\n[spool]\nmax_bytes = \"2MiB\"\nmax_age = 7\n[identity]\ntpm = \"unix:/t\"\nkey_type = 1\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	want := Places{filepath.Join(filepath.Dir(file), "s"), "/run/x.sock", Spool{2 << 20, 72 * time.Hour}, Identity{TPM: "unix:/t", KeyType: "ecc-p256"}}
	if got := PlacesOf(file); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	want = Places{"/var/lib/gatewayd", "/run/gatewayd/status.sock", Spool{64 << 20, 72 * time.Hour}, Identity{TPM: "/dev/tpmrm0", KeyType: "ecc-p256"}}
	if got := PlacesOf(file + ".none"); got != want {
		t.Errorf("without a file: %+v, want %+v", got, want)
	}
}
