package tls

import "golang.org/x/crypto/cryptobyte"

// RFC 6961: status_request_v2 with ocsp_multi, for TLS 1.2. TLS 1.3 has a
// response in the entry of each certificate instead (RFC 8446, section 4.4.2.1).
const (
	extensionStatusRequestV2 uint16 = 17
	statusTypeOCSPMulti      uint8  = 2
)

// extMarshalStatusRequestV2 adds the extension with one item: ocsp_multi, no
// responder named, no extension.
func extMarshalStatusRequestV2(b *cryptobyte.Builder) {
	b.AddUint16(extensionStatusRequestV2)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint8(statusTypeOCSPMulti)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
				b.AddUint16(0) // responder_id_list
				b.AddUint16(0) // request_extensions
			})
		})
	})
}

// extReadStatusRequestV2 reads a client's extension. Items of other types are
// skipped (RFC 6961, section 2.2).
func (m *clientHelloMsg) extReadStatusRequestV2(s *cryptobyte.String) bool {
	var items cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&items) || items.Empty() {
		return false
	}
	for !items.Empty() {
		var statusType uint8
		var request, responders, extensions cryptobyte.String
		if !items.ReadUint8(&statusType) || !items.ReadUint16LengthPrefixed(&request) {
			return false
		}
		if statusType != statusTypeOCSPMulti {
			continue
		}
		if !request.ReadUint16LengthPrefixed(&responders) || !request.ReadUint16LengthPrefixed(&extensions) || !request.Empty() {
			return false
		}
		m.ocspMulti = true
	}
	return true
}

func (m *certificateStatusMsg) extMarshalMulti() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddUint8(typeCertificateStatus)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint8(statusTypeOCSPMulti)
		b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, response := range m.multi {
				b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(response) })
			}
		})
	})
	return b.Bytes()
}

// extIsMulti reports whether data is a CertificateStatus of type ocsp_multi.
func extIsMulti(data []byte) bool { return len(data) > 4 && data[4] == statusTypeOCSPMulti }

func (m *certificateStatusMsg) extUnmarshalMulti(data []byte) bool {
	s := cryptobyte.String(data)
	var list cryptobyte.String
	if !s.Skip(5) || !s.ReadUint24LengthPrefixed(&list) || !s.Empty() || list.Empty() {
		return false
	}
	m.multi = nil
	for !list.Empty() {
		var response []byte
		if !readUint24LengthPrefixed(&list, &response) {
			return false
		}
		if len(response) == 0 {
			response = nil // no response for this certificate
		}
		m.multi = append(m.multi, response)
	}
	return true
}

// extLeaf is the response for the leaf.
func (m *certificateStatusMsg) extLeaf() []byte {
	if m.multi != nil {
		return m.multi[0]
	}
	return m.response
}

// extStatusExpected reports whether the server may send this CertificateStatus:
// it announced this type, and it has no response beyond the certificates.
func (hs *clientHandshakeState) extStatusExpected(m *certificateStatusMsg, certificates int) bool {
	if m.multi != nil {
		return hs.serverHello.ocspMulti && len(m.multi) <= certificates
	}
	return hs.serverHello.ocspStapling
}

// extCertificateStatus is the message that was announced: with ocsp_multi an
// entry for each certificate of the chain, empty where there is no response.
func (hs *serverHandshakeState) extCertificateStatus() *certificateStatusMsg {
	if !hs.hello.ocspMulti {
		return &certificateStatusMsg{response: hs.cert.OCSPStaple}
	}
	multi := make([][]byte, len(hs.cert.Certificate))
	for i := range multi {
		multi[i] = hs.cert.extStaple(i)
	}
	return &certificateStatusMsg{multi: multi}
}

// extMarshalStaple adds the response to the TLS 1.3 entry of certificate i.
func (cert *Certificate) extMarshalStaple(b *cryptobyte.Builder, i int) {
	response := cert.extStaple(i)
	if len(response) == 0 {
		return
	}
	b.AddUint16(extensionStatusRequest)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint8(statusTypeOCSP)
		b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(response) })
	})
}

// extReadStaple reads an extension of the TLS 1.3 entry of the last
// certificate so far, which is not the leaf.
func (cert *Certificate) extReadStaple(extension uint16, data cryptobyte.String) bool {
	if extension != extensionStatusRequest {
		return true
	}
	var statusType uint8
	var response []byte
	if !data.ReadUint8(&statusType) || statusType != statusTypeOCSP ||
		!readUint24LengthPrefixed(&data, &response) || len(response) == 0 || !data.Empty() {
		return false
	}
	i := len(cert.Certificate) - 1
	for len(cert.OCSPStaples) <= i {
		cert.OCSPStaples = append(cert.OCSPStaples, nil)
	}
	if cert.OCSPStaples[i] != nil {
		return false // sent twice in one entry
	}
	cert.OCSPStaples[i] = response
	return true
}
