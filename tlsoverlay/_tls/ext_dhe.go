package tls

import (
	"crypto"
	"crypto/internal/fips140/bigmod"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
)

// DHE_RSA for TLS 1.2 (RFC 5246, section 7.4.3; RFC 5288; RFC 7919). The
// arithmetic is bigmod's, whose exponentiation takes a time that depends on
// lengths only.
const (
	extTLS_DHE_RSA_WITH_AES_128_CBC_SHA256 uint16 = 0x0067
	extTLS_DHE_RSA_WITH_AES_256_CBC_SHA256 uint16 = 0x006B
	extTLS_DHE_RSA_WITH_AES_128_GCM_SHA256 uint16 = 0x009E
	extTLS_DHE_RSA_WITH_AES_256_GCM_SHA384 uint16 = 0x009F
)

// suiteDHE marks our suites. It is far from the stock flags.
const suiteDHE = 1 << 20

// extCipherSuites is reached through cipherSuiteByID alone: no suite of it is
// in a stock list, so none is used unless SetCipherSuiteOrder names it.
var extCipherSuites = []*cipherSuite{
	{extTLS_DHE_RSA_WITH_AES_256_GCM_SHA384, 32, 0, 4, extDHEKA, suiteDHE | suiteTLS12 | suiteSHA384, nil, nil, aeadAESGCM},
	{extTLS_DHE_RSA_WITH_AES_128_GCM_SHA256, 16, 0, 4, extDHEKA, suiteDHE | suiteTLS12, nil, nil, aeadAESGCM},
	{extTLS_DHE_RSA_WITH_AES_256_CBC_SHA256, 32, 32, 16, extDHEKA, suiteDHE | suiteTLS12, cipherAES, macSHA256, nil},
	{extTLS_DHE_RSA_WITH_AES_128_CBC_SHA256, 16, 32, 16, extDHEKA, suiteDHE | suiteTLS12, cipherAES, macSHA256, nil},
}

var extCipherSuiteNames = map[uint16]string{
	extTLS_DHE_RSA_WITH_AES_128_CBC_SHA256: "TLS_DHE_RSA_WITH_AES_128_CBC_SHA256",
	extTLS_DHE_RSA_WITH_AES_256_CBC_SHA256: "TLS_DHE_RSA_WITH_AES_256_CBC_SHA256",
	extTLS_DHE_RSA_WITH_AES_128_GCM_SHA256: "TLS_DHE_RSA_WITH_AES_128_GCM_SHA256",
	extTLS_DHE_RSA_WITH_AES_256_GCM_SHA384: "TLS_DHE_RSA_WITH_AES_256_GCM_SHA384",
}

func extCipherSuiteByID(id uint16) *cipherSuite {
	for _, s := range extCipherSuites {
		if s.id == id {
			return s
		}
	}
	return nil
}

func extIsDHE(id uint16) bool { return extCipherSuiteByID(id) != nil }

// An extGroup is a safe prime p = 2q+1 with the generator 2.
type extGroup struct {
	id           CurveID // RFC 7919; 0 for a group that a server may choose but nobody can name
	prime        string
	exponentSize int // bytes of a secret exponent: above what RFC 7919, section 5.2 asks for
}

const (
	extFFDHE2048 CurveID = 256
	extFFDHE3072 CurveID = 257
)

// extGroupTable: RFC 7919, and RFC 3526 for servers that choose those.
var extGroupTable = []extGroup{
	{extFFDHE2048, ffdhe2048Prime, 32},
	{extFFDHE3072, ffdhe3072Prime, 40},
	{0, modp2048Prime, 32},
	{0, modp3072Prime, 40},
	{0, modp4096Prime, 48},
}

func extGroupByID(id CurveID) *extGroup {
	for i := range extGroupTable {
		if id != 0 && extGroupTable[i].id == id {
			return &extGroupTable[i]
		}
	}
	return nil
}

// extGroupByPrime knows a group by its bytes: a prime that nobody reviewed is refused.
func extGroupByPrime(p []byte) *extGroup {
	for len(p) > 0 && p[0] == 0 {
		p = p[1:]
	}
	for i := range extGroupTable {
		if slices.Equal(extGroupTable[i].bytes(), p) {
			return &extGroupTable[i]
		}
	}
	return nil
}

func (g *extGroup) bytes() []byte {
	p, err := hex.DecodeString(g.prime)
	if err != nil {
		panic("tls: internal error: malformed prime")
	}
	return p
}

// extGroups are the groups to use, in order.
func (c *Config) extGroups() []CurveID {
	if c.ext != nil && c.ext.groups != nil {
		return c.ext.groups
	}
	return []CurveID{extFFDHE3072, extFFDHE2048}
}

// extDHEGroup is the group for a client: the first of ours that it names; if it
// names no finite field group at all, our first (RFC 7919, section 4); nil if it
// names only others.
func (c *Config) extDHEGroup(named []CurveID) *extGroup {
	for _, id := range c.extGroups() {
		if slices.Contains(named, id) {
			return extGroupByID(id)
		}
	}
	if slices.ContainsFunc(named, func(id CurveID) bool { return id >= 256 && id < 512 }) {
		return nil
	}
	return extGroupByID(c.extGroups()[0])
}

// extSupportsDHE reports whether a DHE suite can be used with this client and certificate.
func (chi *ClientHelloInfo) extSupportsDHE(config *Config, vers uint16, cert *Certificate) bool {
	priv, ok := cert.PrivateKey.(crypto.Signer)
	if !ok || vers != VersionTLS12 || config.extDHEGroup(chi.SupportedCurves) == nil {
		return false
	}
	if _, ok := priv.Public().(*rsa.PublicKey); !ok {
		return false
	}
	return slices.ContainsFunc(config.cipherSuites(false), func(id uint16) bool {
		return extIsDHE(id) && slices.Contains(chi.CipherSuites, id)
	})
}

func extDHEKA(uint16) keyAgreement { return &extDHEKeyAgreement{} }

// extDHEKeyAgreement is DHE_RSA, both roles. A value serves one handshake.
type extDHEKeyAgreement struct {
	group    *extGroup
	modulus  *bigmod.Modulus
	exponent []byte

	// client: made in processServerKeyExchange, used in generateClientKeyExchange
	ckx             *clientKeyExchangeMsg
	preMasterSecret []byte
}

// generate makes the secret exponent and returns the public value, as long as the prime.
func (ka *extDHEKeyAgreement) generate(rand io.Reader, g *extGroup) ([]byte, error) {
	var err error
	if ka.modulus, err = bigmod.NewModulus(g.bytes()); err != nil {
		return nil, err
	}
	ka.group = g
	ka.exponent = make([]byte, g.exponentSize)
	if _, err := io.ReadFull(rand, ka.exponent); err != nil {
		return nil, errors.New("tls: short read from Rand: " + err.Error())
	}
	two, err := bigmod.NewNat().SetBytes([]byte{2}, ka.modulus)
	if err != nil {
		return nil, err
	}
	return bigmod.NewNat().Exp(two, ka.exponent, ka.modulus).Bytes(ka.modulus), nil
}

// agree computes the pre-master secret and forgets the exponent. The peer's
// value must be in 2..p-2, which is enough for a safe prime.
func (ka *extDHEKeyAgreement) agree(peer []byte) ([]byte, error) {
	defer clear(ka.exponent)
	for len(peer) > 0 && peer[0] == 0 {
		peer = peer[1:]
	}
	y, err := bigmod.NewNat().SetBytes(peer, ka.modulus)
	if err != nil || y.IsZero() == 1 || y.IsOne() == 1 || y.IsMinusOne(ka.modulus) == 1 {
		return nil, errors.New("tls: invalid Diffie-Hellman value of the peer")
	}
	secret := bigmod.NewNat().Exp(y, ka.exponent, ka.modulus).Bytes(ka.modulus)
	// RFC 5246, section 8.1.2: leading zero bytes are stripped. That the length
	// shows is no matter for an exponent that is used once.
	for len(secret) > 0 && secret[0] == 0 {
		secret = secret[1:]
	}
	return secret, nil
}

func extAppend16(b, data []byte) []byte {
	return append(append(b, byte(len(data)>>8), byte(len(data))), data...)
}

func extRead16(b *[]byte) ([]byte, bool) {
	if len(*b) < 2 {
		return nil, false
	}
	n := int((*b)[0])<<8 | int((*b)[1])
	if len(*b) < 2+n {
		return nil, false
	}
	data := (*b)[2 : 2+n]
	*b = (*b)[2+n:]
	return data, true
}

func (ka *extDHEKeyAgreement) generateServerKeyExchange(config *Config, cert *Certificate, clientHello *clientHelloMsg, hello *serverHelloMsg) (*serverKeyExchangeMsg, error) {
	g := config.extDHEGroup(clientHello.supportedCurves)
	if g == nil {
		return nil, errors.New("tls: the client names no finite field group of ours")
	}
	public, err := ka.generate(config.rand(), g)
	if err != nil {
		return nil, err
	}
	params := extAppend16(extAppend16(extAppend16(nil, g.bytes()), []byte{2}), public)

	priv, ok := cert.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("tls: certificate private key of type %T does not implement crypto.Signer", cert.PrivateKey)
	}
	scheme, err := selectSignatureScheme(VersionTLS12, cert, clientHello.supportedSignatureAlgorithms)
	if err != nil {
		return nil, err
	}
	sigType, sigHash, err := typeAndHashFromSignatureScheme(scheme)
	if err != nil {
		return nil, err
	}
	if sigType != signaturePKCS1v15 && sigType != signatureRSAPSS {
		return nil, errors.New("tls: certificate cannot be used with the selected cipher suite")
	}
	opts := crypto.SignerOpts(sigHash)
	if sigType == signatureRSAPSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: sigHash}
	}
	sig, err := crypto.SignMessage(priv, config.rand(), slices.Concat(clientHello.random, hello.random, params), opts)
	if err != nil {
		return nil, errors.New("tls: failed to sign the Diffie-Hellman parameters: " + err.Error())
	}
	return &serverKeyExchangeMsg{key: extAppend16(append(params, byte(scheme>>8), byte(scheme)), sig)}, nil
}

func (ka *extDHEKeyAgreement) processClientKeyExchange(_ *Config, _ *Certificate, ckx *clientKeyExchangeMsg, _ uint16) ([]byte, error) {
	rest := ckx.ciphertext
	peer, ok := extRead16(&rest)
	if !ok || len(rest) != 0 {
		return nil, errClientKeyExchange
	}
	return ka.agree(peer)
}

func (ka *extDHEKeyAgreement) processServerKeyExchange(config *Config, clientHello *clientHelloMsg, serverHello *serverHelloMsg, cert *x509.Certificate, skx *serverKeyExchangeMsg) error {
	rest := skx.key
	p, ok1 := extRead16(&rest)
	generator, ok2 := extRead16(&rest)
	peer, ok3 := extRead16(&rest)
	if !ok1 || !ok2 || !ok3 || len(rest) < 4 {
		return errServerKeyExchange
	}
	params := skx.key[:len(skx.key)-len(rest)]
	scheme := SignatureScheme(rest[0])<<8 | SignatureScheme(rest[1])
	rest = rest[2:]
	sig, ok := extRead16(&rest)
	if !ok || len(rest) != 0 {
		return errServerKeyExchange
	}

	group := extGroupByPrime(p)
	if group == nil || len(generator) != 1 || generator[0] != 2 {
		return fmt.Errorf("tls: server selected an unknown Diffie-Hellman group of %d bits", len(p)*8)
	}
	if !isSupportedSignatureAlgorithm(scheme, clientHello.supportedSignatureAlgorithms) {
		return errors.New("tls: certificate used with invalid signature algorithm")
	}
	sigType, sigHash, err := typeAndHashFromSignatureScheme(scheme)
	if err != nil {
		return err
	}
	if sigType != signaturePKCS1v15 && sigType != signatureRSAPSS {
		return errServerKeyExchange
	}
	signed := slices.Concat(clientHello.random, serverHello.random, params)
	if err := verifyHandshakeSignature(sigType, cert.PublicKey, sigHash, signed, sig); err != nil {
		return errors.New("tls: invalid signature by the server certificate: " + err.Error())
	}

	public, err := ka.generate(config.rand(), group)
	if err != nil {
		return err
	}
	if ka.preMasterSecret, err = ka.agree(peer); err != nil {
		return err
	}
	ka.ckx = &clientKeyExchangeMsg{ciphertext: extAppend16(nil, public)}
	return nil
}

func (ka *extDHEKeyAgreement) generateClientKeyExchange(*Config, *clientHelloMsg, *x509.Certificate) ([]byte, *clientKeyExchangeMsg, error) {
	if ka.ckx == nil {
		return nil, nil, errors.New("tls: missing ServerKeyExchange message")
	}
	return ka.preMasterSecret, ka.ckx, nil
}

// The primes of RFC 7919, appendix A, and RFC 3526. A test derives each from
// the formula of its RFC.
const ffdhe2048Prime = "FFFFFFFFFFFFFFFFADF85458A2BB4A9AAFDC5620273D3CF1D8B9C583CE2D3695A9E13641146433FBCC939DCE249B3EF9" +
	"7D2FE363630C75D8F681B202AEC4617AD3DF1ED5D5FD65612433F51F5F066ED0856365553DED1AF3B557135E7F57C935" +
	"984F0C70E0E68B77E2A689DAF3EFE8721DF158A136ADE73530ACCA4F483A797ABC0AB182B324FB61D108A94BB2C8E3FB" +
	"B96ADAB760D7F4681D4F42A3DE394DF4AE56EDE76372BB190B07A7C8EE0A6D709E02FCE1CDF7E2ECC03404CD28342F61" +
	"9172FE9CE98583FF8E4F1232EEF28183C3FE3B1B4C6FAD733BB5FCBC2EC22005C58EF1837D1683B2C6F34A26C1B2EFFA" +
	"886B423861285C97FFFFFFFFFFFFFFFF"

const ffdhe3072Prime = "FFFFFFFFFFFFFFFFADF85458A2BB4A9AAFDC5620273D3CF1D8B9C583CE2D3695A9E13641146433FBCC939DCE249B3EF9" +
	"7D2FE363630C75D8F681B202AEC4617AD3DF1ED5D5FD65612433F51F5F066ED0856365553DED1AF3B557135E7F57C935" +
	"984F0C70E0E68B77E2A689DAF3EFE8721DF158A136ADE73530ACCA4F483A797ABC0AB182B324FB61D108A94BB2C8E3FB" +
	"B96ADAB760D7F4681D4F42A3DE394DF4AE56EDE76372BB190B07A7C8EE0A6D709E02FCE1CDF7E2ECC03404CD28342F61" +
	"9172FE9CE98583FF8E4F1232EEF28183C3FE3B1B4C6FAD733BB5FCBC2EC22005C58EF1837D1683B2C6F34A26C1B2EFFA" +
	"886B4238611FCFDCDE355B3B6519035BBC34F4DEF99C023861B46FC9D6E6C9077AD91D2691F7F7EE598CB0FAC186D91C" +
	"AEFE130985139270B4130C93BC437944F4FD4452E2D74DD364F2E21E71F54BFF5CAE82AB9C9DF69EE86D2BC522363A0D" +
	"ABC521979B0DEADA1DBF9A42D5C4484E0ABCD06BFA53DDEF3C1B20EE3FD59D7C25E41D2B66C62E37FFFFFFFFFFFFFFFF"

const modp2048Prime = "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD" +
	"EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED" +
	"EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F" +
	"83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B" +
	"E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510" +
	"15728E5A8AACAA68FFFFFFFFFFFFFFFF"

const modp3072Prime = "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD" +
	"EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED" +
	"EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F" +
	"83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B" +
	"E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510" +
	"15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7" +
	"ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C" +
	"BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A93AD2CAFFFFFFFFFFFFFFFF"

const modp4096Prime = "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD" +
	"EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED" +
	"EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F" +
	"83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B" +
	"E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510" +
	"15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7" +
	"ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C" +
	"BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A92108011A723C12A787E6D7" +
	"88719A10BDBA5B2699C327186AF4E23C1A946834B6150BDA2583E9CA2AD44CE8DBBBC2DB04DE8EF92E8EFC141FBECAA6" +
	"287C59474E6BC05D99B2964FA090C3A2233BA186515BE7ED1F612970CEE2D7AFB81BDD762170481CD0069127D5B05AA9" +
	"93B4EA988D8FDDC186FFB7DC90A6C08F4DF435C934063199FFFFFFFFFFFFFFFF"
