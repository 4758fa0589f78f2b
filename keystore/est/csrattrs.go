package est

import (
	"context"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/http"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// An Attribute is something that the CA wishes to see in a request (RFC 7030,
// section 4.5.2): a bare OID, or a type with values.
type Attribute struct {
	Type   asn1.ObjectIdentifier
	Values [][]byte // DER
}

const maxAttributes = 64

// CSRAttrs asks what the CA wishes to see in requests. None at all is no error:
// most servers have nothing to say (204 or 404).
func (c *Client) CSRAttrs(ctx context.Context) ([]Attribute, error) {
	a, err := c.ask(ctx, http.MethodGet, "csrattrs", nil)
	switch {
	case err != nil:
	case a.status == http.StatusNoContent || a.status == http.StatusNotFound:
		return nil, nil
	case a.status != http.StatusOK:
		err = a.refusal(c.o.Now())
	default:
		var all []Attribute
		if all, err = parseAttributes(a.body); err == nil {
			return all, nil
		}
	}
	return nil, fmt.Errorf("attributes for requests of %s: %w", c.base, err)
}

func parseAttributes(body []byte) ([]Attribute, error) {
	der, err := decode(body)
	if err != nil {
		return nil, err
	}
	input, all := cryptobyte.String(der), []Attribute(nil)
	var list cryptobyte.String
	if !input.ReadASN1(&list, cbasn1.SEQUENCE) || !input.Empty() {
		return nil, errors.New("the answer is no CsrAttrs")
	}
	for !list.Empty() {
		if len(all) == maxAttributes {
			return nil, fmt.Errorf("the answer has more than %d attributes", maxAttributes)
		}
		one, ok := readAttribute(&list)
		if !ok {
			return nil, fmt.Errorf("attribute %d of the answer cannot be read", len(all)+1)
		}
		all = append(all, one)
	}
	return all, nil
}

func readAttribute(list *cryptobyte.String) (a Attribute, ok bool) {
	if list.PeekASN1Tag(cbasn1.OBJECT_IDENTIFIER) {
		return a, list.ReadASN1ObjectIdentifier(&a.Type)
	}
	var one, values cryptobyte.String
	if !list.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1ObjectIdentifier(&a.Type) || !one.ReadASN1(&values, cbasn1.SET) || !one.Empty() {
		return a, false
	}
	for !values.Empty() {
		var value cryptobyte.String
		var tag cbasn1.Tag
		if !values.ReadAnyASN1Element(&value, &tag) {
			return a, false
		}
		a.Values = append(a.Values, value)
	}
	return a, true
}
