package pcd

// A Severity says what a finding costs.
type Severity uint8

// The severities.
const (
	Warning Severity = iota // a receiver that keeps the profile takes it
	Error                   // the profile forbids it
)

// String is the severity in small letters.
func (s Severity) String() string {
	if s == Error {
		return "error"
	}
	return "warning"
}

// A Finding is one breach of a rule. It quotes nothing that could be a patient's.
type Finding struct {
	Severity Severity
	Path     string // such as OBX[3]-4: field 4 of the third OBX of the message
	Rule     string // the rule's name, such as obx-4-order
	Text     string // what is wrong, and what is right
}

func Validate(b []byte) []Finding { return nil }
