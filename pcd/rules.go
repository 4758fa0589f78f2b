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

// A Finding is one breach of a rule. It quotes nothing of the message that
// could be a patient's: codes and names of the nomenclature at most.
type Finding struct {
	Severity Severity
	Path     string // such as OBX[3]-4: field 4 of the third OBX of the message
	Rule     string // the name of the rule, such as obx-4-order
	Text     string // what is wrong and what is right
}

// String is the finding on one line.
func (f Finding) String() string {
	if f.Path == "" {
		return f.Severity.String() + " " + f.Rule + ": " + f.Text
	}
	return f.Severity.String() + " " + f.Rule + " at " + f.Path + ": " + f.Text
}

// A Rule is one that Validate holds messages to.
type Rule struct {
	Name     string
	Severity Severity
	Text     string
}

// Rules are all rules that Validate knows, in the order of the fields that
// they are about.
func Rules() []Rule { return append([]Rule(nil), rules[:]...) }

// A ruleID is an index of rules.
type ruleID uint8

const (
	ruleSyntax ruleID = iota
	ruleSegmentEnd
	ruleCharset
	ruleSegment
	ruleORC
	ruleSeveralPatients
	rulePV1WithoutPID
	ruleOBRMissing
	ruleNTE
	ruleDelimiters
	ruleMSHForbidden
	ruleMSH3
	ruleHD
	ruleEUI64
	ruleEUI64Zero
	ruleTimeMissing
	ruleTimeForm
	ruleTimeZone
	ruleMSH9
	ruleMSH10
	ruleMSH10Length
	ruleMSH11
	ruleMSH12
	ruleMSH13
	ruleMSHAck
	ruleMSHAckNone
	ruleMSH17
	ruleMSH18
	ruleMSH21
	rulePIDForbidden
	rulePID3
	rulePID3Length
	rulePID3Type
	rulePID5
	rulePID8
	rulePID31
	rulePV1Forbidden
	rulePV12
	rulePV151
	ruleOBR1
	ruleOBR3
	ruleOBR4
	ruleOBRForbidden
	ruleInterval
	ruleEI
	ruleCWE
	ruleCodeUnknown
	ruleCodeDeprecated
	ruleCodeSynonym
	ruleCodeName
	rulePrivateCode
	ruleOBX1
	ruleOBX2
	ruleOBX3
	ruleOBX4
	ruleOBX4Unique
	ruleOBX4Order
	ruleOBX4Parent
	ruleOBX4Level
	ruleSeveralMDS
	ruleDeviceRow
	ruleOBX5Missing
	ruleOBX5Forbidden
	ruleDatatype
	ruleOBX6Missing
	ruleUnitUCUMOnly
	ruleUnitSystem
	ruleUnitAllowed
	ruleUnitUCUM
	ruleOBX7
	ruleOBX8
	ruleOBX11
	ruleOBX11Flags
	ruleOBX14Future
	ruleOBX14Early
	ruleOBX17
	ruleOBX18
	ruleOBX19
	ruleOBXForbidden
	ruleTimeSync
	ruleCount
)

// The rules are those of the TF (IHE DEV Technical Framework volume 2, 3.1 and
// appendices B and C; volume 3) and HL7 v2.6, and those that follow from them
// though no public validator checks them.
var rules = [ruleCount]Rule{
	ruleSyntax:          {"syntax", Error, "the message cannot be read"},
	ruleSegmentEnd:      {"segment-end", Error, "every segment ends with CR, the last one too, and LF ends none"},
	ruleCharset:         {"charset", Error, "the bytes are not of the character set that MSH-18 names; without one they are ASCII"},
	ruleSegment:         {"segment", Error, "the segment has no place here in ORU_R01 as PCD-01 uses it"},
	ruleORC:             {"orc", Error, "PCD-01 has no ORC segment"},
	ruleSeveralPatients: {"several-patients", Error, "a message is about one patient: it has one PID and one PV1"},
	rulePV1WithoutPID:   {"pv1-without-pid", Error, "PV1 stands within the PATIENT group: without PID it breaks the structure"},
	ruleOBRMissing:      {"obr-missing", Error, "a message has an OBR segment"},
	ruleNTE:             {"nte-count", Warning, "one NTE at most stands after an OBR or OBX"},
	ruleDelimiters:      {"delimiters", Error, `the separators are |^~\&`},
	ruleMSHForbidden:    {"msh-forbidden", Error, "PCD-01 does not use this field: it stays empty"},
	ruleMSH3:            {"msh-3", Error, "the sending application has a name, an identifier and its type, such as GW^0123456789ABCDEF^EUI-64"},
	ruleHD:              {"hd", Error, "a designator is a name of at most 20 characters, and an identifier together with its type or neither"},
	ruleEUI64:           {"eui-64", Error, "an EUI-64 has 16 hexadecimal digits, in capital letters"},
	ruleEUI64Zero:       {"eui-64-zero", Error, "an EUI-64 of zeros identifies nothing"},
	ruleTimeMissing:     {"time-missing", Error, "the time is required"},
	ruleTimeForm:        {"time-form", Error, "a time has date, time of day and seconds: YYYYMMDDHHMMSS[.SSSS]+ZZZZ"},
	ruleTimeZone:        {"time-zone", Error, "a time carries its offset, such as +0000"},
	ruleMSH9:            {"msh-9", Error, "the message type is ORU^R01^ORU_R01"},
	ruleMSH10:           {"msh-10", Error, "a control ID is required, of at most 199 characters"},
	ruleMSH10Length:     {"msh-10-length", Warning, "a control ID of more than 20 characters may come back cut in MSA-2"},
	ruleMSH11:           {"msh-11", Error, "the processing ID is P, D or T"},
	ruleMSH12:           {"msh-12", Error, "the version is 2.6"},
	ruleMSH13:           {"msh-13", Warning, "the sequence number protocol is not used: MSH-13 stays empty"},
	ruleMSHAck:          {"msh-ack", Warning, "MSH-15 is AL and MSH-16 is NE (CP-PCD-091)"},
	ruleMSHAckNone:      {"msh-ack-none", Error, "MSH-15 and MSH-16 are AL, NE, ER or SU, and not both NE: delivery could not be known"},
	ruleMSH17:           {"msh-17", Warning, "a country is three capital letters (ISO 3166)"},
	ruleMSH18:           {"msh-18", Error, "MSH-18 names one known character set or is empty"},
	ruleMSH21:           {"msh-21", Error, "the profile is " + profile + "; its identifier counts"},
	rulePIDForbidden:    {"pid-forbidden", Error, "PCD-01 does not use this field: it stays empty"},
	rulePID3:            {"pid-3", Error, "a patient identifier is required; of an unknown patient it is UNKNOWN^^^^U"},
	rulePID3Length:      {"pid-3-length", Warning, "a patient identifier of more than 15 characters may be cut"},
	rulePID3Type:        {"pid-3-type", Warning, "an identifier has its type in component 5"},
	rulePID5:            {"pid-5", Error, "a name has its type in component 7: L, or U with all others empty"},
	rulePID8:            {"pid-8", Error, "the sex is F, M, O, A, N or U"},
	rulePID31:           {"pid-31", Error, "PID-31 is Y or N"},
	rulePV1Forbidden:    {"pv1-forbidden", Error, "PCD-01 does not use this field: it stays empty"},
	rulePV12:            {"pv1-2", Error, "the patient class is E, I, O, P, R, B, U, C or N"},
	rulePV151:           {"pv1-51", Error, "the visit indicator is A or V"},
	ruleOBR1:            {"obr-1", Error, "OBR-1 counts 1, 2, 3 through the message"},
	ruleOBR3:            {"obr-3", Error, "a filler order number is required, with the identifier of who gave it and its type"},
	ruleOBR4:            {"obr-4", Error, "OBR-4 says what the group is: code, text and system"},
	ruleOBRForbidden:    {"obr-forbidden", Error, "PCD-01 does not use this field: it stays empty"},
	ruleInterval:        {"obr-interval", Error, "OBR-8, the end, lies after OBR-7"},
	ruleEI:              {"ei", Error, "an identifier has its authority and the authority's type together, or neither"},
	ruleCWE:             {"cwe", Error, "a coded value has a code of at most 20 characters (40 in OBX-3), a text and, for an observation or unit, a system"},
	ruleCodeUnknown:     {"code-unknown", Warning, "the code is not in the project's table of the nomenclature"},
	ruleCodeDeprecated:  {"code-deprecated", Warning, "the code is deprecated"},
	ruleCodeSynonym:     {"code-synonym", Warning, "the name is an older one of this code"},
	ruleCodeName:        {"code-name", Error, "the name is not that of the code"},
	rulePrivateCode:     {"private-code", Error, "MDC does not label a private number: code 0 with a name MDCX_…, or the vendor's system"},
	ruleOBX1:            {"obx-1", Error, "OBX-1 counts 1, 2, 3 through the message"},
	ruleOBX2:            {"obx-2", Error, "a value has a data type that PCD-01 knows"},
	ruleOBX3:            {"obx-3", Error, "OBX-3 says what is observed: a numeric code, a text and a system"},
	ruleOBX4:            {"obx-4", Error, "OBX-4 is MDS.VMD.CHAN.METRIC[.FACET[.SUBFACET]] in numbers, of at most 20 characters"},
	ruleOBX4Unique:      {"obx-4-unique", Error, "OBX-4 is different in every row of an OBR"},
	ruleOBX4Order:       {"obx-4-order", Error, "rows stand in the numeric order of OBX-4"},
	ruleOBX4Parent:      {"obx-4-parent", Error, "every level of OBX-4 that is not 0 has its device row before the value"},
	ruleOBX4Level:       {"obx-4-level", Error, "the term does not belong to this level of OBX-4"},
	ruleSeveralMDS:      {"several-mds", Warning, "a message is about one device (MDS)"},
	ruleDeviceRow:       {"device-row", Error, "a device row has no type, value, unit or flags, and X in OBX-11"},
	ruleOBX5Missing:     {"obx-5-missing", Error, "a row without a value says why in OBX-8"},
	ruleOBX5Forbidden:   {"obx-5-forbidden", Error, "OBX-11 X says that there is no value, yet there is one"},
	ruleDatatype:        {"datatype", Error, "the value is not of the type that OBX-2 names"},
	ruleOBX6Missing:     {"obx-6-missing", Error, "a number has a unit"},
	ruleUnitUCUMOnly:    {"unit-ucum-only", Error, "a unit is given in MDC, with UCUM beside it at most"},
	ruleUnitSystem:      {"unit-system", Error, "a unit is given in MDC first"},
	ruleUnitAllowed:     {"unit-allowed", Error, "the nomenclature does not allow this unit for this term"},
	ruleUnitUCUM:        {"unit-ucum", Warning, "the UCUM code is not one of this unit"},
	ruleOBX7:            {"obx-7", Warning, "limits are lo-hi, >lo or <hi, without blanks"},
	ruleOBX8:            {"obx-8", Error, "a flag is none of HL7 table 0078 as the TF extends it"},
	ruleOBX11:           {"obx-11", Error, "the result status is R, F, P, C, D, S, U, W or X"},
	ruleOBX11Flags:      {"obx-11-flags", Error, "OBX-11 and OBX-8 contradict each other"},
	ruleOBX14Future:     {"obx-14-future", Error, "a value cannot be observed after the end of its interval, or after the message"},
	ruleOBX14Early:      {"obx-14-early", Warning, "a continuous value was observed long before the interval that it stands in"},
	ruleOBX17:           {"obx-17", Error, "the method is not one of the TF with its text"},
	ruleOBX18:           {"obx-18", Warning, "the MDS row names the device, by one EUI-64 in production"},
	ruleOBX19:           {"obx-19", Error, "OBX-19 is a copy of OBX-14"},
	ruleOBXForbidden:    {"obx-forbidden", Error, "PCD-01 does not use this field: it stays empty"},
	ruleTimeSync:        {"time-sync", Warning, "a device says how its clock stands: MDC_ATTR_TIME_ABS or a synchronisation row"},
}
