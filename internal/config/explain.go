package config

import (
	"fmt"
	"strings"

	"github.com/bedside-gateway/gatewayd/drivers"
)

// An Entry explains one key.
type Entry struct {
	Section  string // such as [[destination]]
	Key      string // such as destination.address
	Kind     string
	Default  string // as in the file; empty where there is none
	Required bool
	Meaning  string
}

// Entries are all keys in the order of the file.
func Entries() []Entry {
	var all []Entry
	all = append(all, entries("", "", rootKeys)...)
	all = append(all, entries("[gateway]", "gateway.", gatewayKeys)...)
	all = append(all, entries("[identity]", "identity.", identityKeys)...)
	all = append(all, entries("[spool]", "spool.", spoolKeys)...)
	all = append(all, entries("[[destination]]", "destination.", destinationKeys)...)
	all = append(all, entries("[southbound]", "southbound.", southboundKeys)...)
	all = append(all, entries("[[southbound.identity]]", "southbound.identity.", southIdentityKeys)...)
	all = append(all, entries("[[tunnel]]", "tunnel.", tunnelKeys)...)
	all = append(all, entries("[[tunnel.platform]]", "tunnel.platform.", tunnelPlatformKeys)...)
	all = append(all, entries("[[port]]", "port.", portKeys)...)
	all = append(all, entries("[port.location]", "port.location.", locationKeys)...)
	return append(all, Entry{Section: "[port.options]", Key: "port.options", Kind: "section",
		Meaning: "The settings that only the port's driver has."})
}

func entries[T any](name, prefix string, keys section[T]) []Entry {
	out := make([]Entry, len(keys))
	for i, k := range keys {
		out[i] = Entry{name, prefix + k.name, k.into(new(T)).name, defaultText(k.def), k.required, k.meaning}
	}
	return out
}

func defaultText(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return fmt.Sprintf("%q", v)
	case []any:
		return "[]"
	}
	return fmt.Sprint(v)
}

// Explain tells what a key is for, in a few lines for a terminal. The key may be
// written without its section where that is enough.
func Explain(key string, known *drivers.Registry) (string, error) {
	var keys, fits []string
	var b strings.Builder
	for _, e := range Entries() {
		keys = append(keys, e.Key)
		if e.Key == key || strings.HasSuffix(e.Key, "."+key) || strings.HasPrefix(e.Key, key+".") {
			fits = append(fits, e.Key)
			explain(&b, e)
		}
	}
	if strings.HasPrefix(key, "port.options") || key == "options" {
		explainOptions(&b, known)
		fits = append(fits, key)
	}
	if len(fits) == 0 {
		return "", fmt.Errorf("there is no key %.60q; %s", key, explainHint(key, keys))
	}
	return b.String(), nil
}

func explainHint(key string, keys []string) string {
	short := make([]string, len(keys))
	for i, k := range keys {
		short[i] = k[strings.LastIndexByte(k, '.')+1:]
	}
	if near := nearest(key, append(keys, short...)); near != "" {
		return "did you mean " + near + "?"
	}
	return "gatewayd check --explain all lists them"
}

func explain(b *strings.Builder, e Entry) {
	fmt.Fprintf(b, "%s  (%s%s)\n    %s\n", e.Key, e.Kind, e.standing(), e.Meaning)
}

// standing is whether the key must be there, and what it is when it is not.
func (e Entry) standing() string {
	switch {
	case e.Required:
		return "; required"
	case e.Default != "":
		return "; default " + e.Default
	}
	return ""
}

func explainOptions(b *strings.Builder, known *drivers.Registry) {
	for _, d := range known.All() {
		info := d.Info()
		fmt.Fprintf(b, "driver %s: %s\n", info.Name, info.Title)
		for _, o := range info.Options {
			fmt.Fprintf(b, "    %s  (default %q)\n        %s\n", o.Name, o.Default, o.Explain)
		}
	}
}

// ExplainAll is Explain for every key.
func ExplainAll(known *drivers.Registry) string {
	var b strings.Builder
	for _, e := range Entries() {
		explain(&b, e)
	}
	explainOptions(&b, known)
	return b.String()
}

// Markdown is the reference of all keys and driver options, the text of
// doc/configuration.md.
func Markdown(known *drivers.Registry) string {
	var b strings.Builder
	b.WriteString(markdownHead)
	section := "-"
	for _, e := range Entries() {
		if e.Section != section {
			section = e.Section
			fmt.Fprintf(&b, "\n## %s\n\n", sectionTitle(section))
			if section != "[port.options]" {
				b.WriteString("| key | value | default | meaning |\n|---|---|---|---|\n")
			}
		}
		if section != "[port.options]" {
			name := e.Key[strings.LastIndexByte(e.Key, '.')+1:]
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", name, escape(e.Kind), escape(e.markdownDefault()), escape(e.Meaning))
		}
	}
	markdownOptions(&b, known)
	return b.String()
}

const markdownHead = `# The configuration file

` + "`gatewayd` reads one file, `" + DefaultPath + "`" + `, in TOML. An unknown key, a value of the wrong kind or a name
that points nowhere is an error; ` + "`gatewayd check`" + ` lists all of them with their lines, and
` + "`gatewayd check --explain KEY`" + ` prints what is written here. Relative file names start at the folder of
the file. The file holds no secrets. This page is made from the table that the reader itself uses.

` + "`systemctl reload gatewayd`" + ` (SIGHUP) checks the file and takes it over only if it is without fault; else
the gateway goes on as it was. A reload never touches the spool; one that changes
something about [southbound] or its files ends the connections of devices, which come back. A change of state_dir, status_socket or
[spool] needs a restart, which a reload says.
`

func sectionTitle(s string) string {
	if s == "" {
		return "Above all sections"
	}
	return "`" + s + "`"
}

func (e Entry) markdownDefault() string {
	if e.Required {
		return "required"
	}
	if e.Default == "" {
		return ""
	}
	return "`" + e.Default + "`"
}

func escape(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

func markdownOptions(b *strings.Builder, known *drivers.Registry) {
	b.WriteString("The keys depend on the driver of the port.\n")
	for _, d := range known.All() {
		info := d.Info()
		fmt.Fprintf(b, "\n### driver `%s`: %s\n\n", info.Name, info.Title)
		if len(info.Options) == 0 {
			b.WriteString("It has no options.\n")
			continue
		}
		b.WriteString("| option | default | meaning |\n|---|---|---|\n")
		for _, o := range info.Options {
			fmt.Fprintf(b, "| `%s` | `%s` | %s |\n", o.Name, o.Default, escape(o.Explain))
		}
	}
}
