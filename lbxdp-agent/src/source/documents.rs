//! Splits a YAML file into its documents, so that one broken document cannot take the others
//! with it: a YAML parser cannot find its way back after a syntax error.

/// One document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// Number of the document in the file, from 1, empty ones not counted.
    pub number: usize,
    /// Line of the file its text begins on, from 1.
    pub first_line: usize,
    /// Text, without the marker line unless that carries content.
    pub text: &'a str,
}

/// The documents of a file. In YAML a `---` or `...` at the start of a line ends a document
/// wherever it stands, also inside block scalars, so no parsing is needed.
pub(super) fn split(file: &str) -> Vec<Document<'_>> {
    let file = file.strip_prefix('\u{feff}').unwrap_or(file);
    let mut documents = Vec::new();
    let mut start = 0;
    let mut first_line = 1;
    let mut offset = 0;
    let mut push = |text, first_line| {
        if has_content(text) {
            documents.push(Document { number: documents.len() + 1, first_line, text });
        }
    };
    for (index, line) in file.split_inclusive('\n').enumerate() {
        let next = offset + line.len();
        if is_marker(line, "---") {
            push(&file[start..offset], first_line);
            // What follows the marker on its line is content: `--- {kind: Service}`. Keeping the
            // line keeps columns right, and a document may begin with its marker.
            let blank = line[3..].trim().is_empty() || line[3..].trim_start().starts_with('#');
            (start, first_line) = if blank { (next, index + 2) } else { (offset, index + 1) };
        } else if is_marker(line, "...") {
            push(&file[start..offset], first_line);
            (start, first_line) = (next, index + 2);
        }
        offset = next;
    }
    push(&file[start..], first_line);
    documents
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Comments and directives (`%YAML 1.2`) alone make no document.
fn has_content(text: &str) -> bool {
    text.lines().any(|line| {
        let trimmed = line.trim();
        !trimmed.is_empty() && !trimmed.starts_with('#') && !line.starts_with('%')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: &str) -> Vec<(usize, usize, &str)> {
        split(file).into_iter().map(|d| (d.number, d.first_line, d.text)).collect()
    }

    #[test]
    fn documents_know_their_first_line() {
        assert_eq!(of("a: 1\n---\nb: 2\n"), [(1, 1, "a: 1\n"), (2, 3, "b: 2\n")]);
    }

    #[test]
    fn empty_documents_are_not_counted() {
        let file = "# licence\n---\n---  # nothing\n\na: 1\n--- \r\n...\n%YAML 1.2\n---\nb: 2";
        assert_eq!(of(file), [(1, 4, "\na: 1\n"), (2, 10, "b: 2")]);
    }

    #[test]
    fn content_may_share_the_line_of_the_marker() {
        assert_eq!(of("a: 1\n--- {b: 2}\n"), [(1, 1, "a: 1\n"), (2, 2, "--- {b: 2}\n")]);
    }

    #[test]
    fn dashes_that_are_not_a_marker_stay() {
        let file = "a: |\n  ---\nb: ---x\n---y: 1\n";
        assert_eq!(of(file), [(1, 1, file)]);
    }

    #[test]
    fn a_byte_order_mark_and_windows_line_ends_are_no_content() {
        assert_eq!(of("\u{feff}---\r\na: 1\r\n---\r\n"), [(1, 2, "a: 1\r\n")]);
    }
}
