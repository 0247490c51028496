package files

import (
	"regexp"
	"strings"
)

// Globs says which paths of an archive are left out.
type Globs []*regexp.Regexp

// ParseGlobs reads patterns: `*` and `?` within a name, `**` across names, `[…]` one of them. A pattern without a slash is
// for a name at any depth, one with a slash for the whole path. The matching takes linear time, whatever the pattern.
func ParseGlobs(patterns []string) (Globs, error) {
	var globs Globs
	for _, pattern := range patterns {
		text := strings.Trim(pattern, "/")
		anywhere := "^"
		if !strings.Contains(strings.TrimPrefix(pattern, "/"), "/") || strings.HasPrefix(text, "**/") {
			anywhere, text = "(?:^|/)", strings.TrimPrefix(text, "**/")
		}
		compiled, err := regexp.Compile("(?s)" + anywhere + translate(text) + "$")
		if err != nil {
			return nil, err
		}
		globs = append(globs, compiled)
	}
	return globs, nil
}

func translate(text string) string {
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case strings.HasPrefix(text[i:], "**/"):
			out.WriteString("(?:[^/]*/)*")
			i += 2
		case strings.HasPrefix(text[i:], "**"):
			out.WriteString(".*")
			i++
		case text[i] == '*':
			out.WriteString("[^/]*")
		case text[i] == '?':
			out.WriteString("[^/]")
		case text[i] == '[':
			end := strings.IndexByte(text[min(i+2, len(text)):], ']')
			if end < 0 {
				out.WriteString(`\[`)
				continue
			}
			inside := text[i+1 : i+2+end]
			i += end + 2
			negated := ""
			if strings.HasPrefix(inside, "!") || strings.HasPrefix(inside, "^") {
				negated, inside = "^", inside[1:]
			}
			out.WriteString("[" + negated + strings.NewReplacer(`\`, `\\`, `[`, `\[`, `]`, `\]`, `^`, `\^`).Replace(inside) + "]")
		default:
			out.WriteString(regexp.QuoteMeta(text[i : i+1]))
		}
	}
	return out.String()
}

func (g Globs) match(name string) bool {
	for _, glob := range g {
		if glob.MatchString(name) {
			return true
		}
	}
	return false
}
