# SPDX-License-Identifier: Apache-2.0
"""A small C tokenizer and the shapes of functions, for tests/tidy.py.

Not a parser: it knows comments, strings, preprocessor lines and brackets, which is enough to say where a
function begins and ends, how many parameters it has and how deep its blocks go. ctags and libclang know more,
but need a build and differ by version; this reads any file that compiles, and says nothing about others.
"""
import re
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""(?P<comment>/\*.*?\*/|//(?:[^\n\\]|\\.)*)
      | (?P<directive>(?<![^\n])[ \t]*\#(?:[^\n\\/]|\\.|/(?!\*)|/\*.*?\*/)*)
      | (?P<string>(?:u8|[uUL])?"(?:[^"\\\n]|\\.)*")
      | (?P<char>[uUL]?'(?:[^'\\\n]|\\.)*')
      | (?P<number>\.?[0-9](?:[eEpP][+-]|[\w.])*)
      | (?P<word>[A-Za-z_]\w*)
      | (?P<space>\s+)
      | (?P<punct>.)""",
    re.S | re.X,
)
NOT_A_CALL = {"return", "sizeof", "case", "_Alignof", "__typeof__", "typeof"}
CONTROL = {"if", "for", "while", "switch"}
ATTRIBUTES = {"__attribute__", "_Static_assert", "static_assert", "_Alignas"}


@dataclass
class Token:
    kind: str
    text: str
    line: int


@dataclass
class Function:
    name: str
    line: int
    last_line: int = 0
    parameters: int = 0
    nesting: int = 0
    directives: list = field(default_factory=list)  # (line, text)
    body: list = field(default_factory=list)  # tokens between the outer braces

    @property
    def lines(self):
        return self.last_line - self.line + 1


def tokenize(text):
    """All tokens but white space; comments and directives are tokens of their own."""
    tokens, line = [], 1
    for match in TOKEN.finditer(text):
        if match.lastgroup != "space":
            lead = len(match.group()) - len(match.group().lstrip())
            tokens.append(Token(match.lastgroup, match.group()[lead:], line))
        line += match.group().count("\n")
    return tokens


def matching_open(code, close):
    """Index of the bracket that code[close] closes, or -1."""
    pairs = {")": "(", "]": "[", "}": "{"}
    opening, depth = pairs[code[close].text], 0
    for i in range(close, -1, -1):
        if code[i].text == code[close].text:
            depth += 1
        elif code[i].text == opening:
            depth -= 1
            if depth == 0:
                return i
    return -1


def parameter_list(code, brace):
    """(index of the name, index of '(') of the function whose body opens at code[brace], or None."""
    close = brace - 1
    while close > 0 and code[close].text == ")":
        opening = matching_open(code, close)
        name = code[opening - 1] if opening > 0 else None
        if name is None or name.kind != "word":
            return None
        if name.text not in ATTRIBUTES:
            return opening - 1, opening
        close = opening - 2
    return None


def count_parameters(code, opening):
    depth, commas, inside = 0, 0, []
    for token in code[opening:]:
        depth += token.text in ("(", "[", "{")
        depth -= token.text in (")", "]", "}")
        if depth == 0:
            break
        commas += depth == 1 and token.text == ","
        inside.append(token.text)
    return 0 if inside in (["("], ["(", "void"]) else commas + 1


def opens_block(code, i):
    """Whether the brace code[i] opens a block of statements and not an initialiser."""
    before = code[i - 1].text
    if before in (";", "{", "}", ":", "else", "do"):
        return True
    if before != ")":
        return False
    opening = matching_open(code, i - 1)
    word = code[opening - 1]
    return word.kind == "word" and word.text not in NOT_A_CALL


def is_extern_c(code, i):
    return i >= 2 and code[i - 2].text == "extern" and code[i - 1].kind == "string"


class Finder:
    """Walks the tokens of a file once and collects its functions."""

    def __init__(self, tokens):
        self.functions = []
        self.current = None
        self.stack = []  # per open brace: "block", "other" or "extern"
        self.code = []  # tokens so far without comments and directives
        for token in tokens:
            self.step(token)

    def step(self, token):
        if token.kind == "comment":
            return
        if token.kind == "directive":
            if self.current:
                self.current.directives.append((token.line, token.text))
            return
        self.code.append(token)
        if token.text == "{":
            self.open_brace(token)
        elif token.text == "}" and self.stack:
            self.close_brace(token)
        elif self.current:
            self.current.body.append(token)

    def open_brace(self, token):
        i = len(self.code) - 1
        if self.current:
            self.current.body.append(token)
            self.stack.append("block" if opens_block(self.code, i) else "other")
            depth = self.stack.count("block") - 1
            self.current.nesting = max(self.current.nesting, depth)
        elif is_extern_c(self.code, i):
            self.stack.append("extern")
        elif "other" not in self.stack and (at := parameter_list(self.code, i)):
            self.current = Function(self.code[at[0]].text, self.start_line(at[0]))
            self.current.parameters = count_parameters(self.code, at[1])
            self.stack.append("block")
        else:
            self.stack.append("other")

    def close_brace(self, token):
        self.stack.pop()
        if self.current and "block" not in self.stack:
            self.current.last_line = token.line
            self.functions.append(self.current)
            self.current = None
        elif self.current:
            self.current.body.append(token)

    def start_line(self, name):
        """Line of the first token of the definition whose name is code[name]."""
        first = name
        while first > 0 and self.code[first - 1].text not in (";", "}", "{", ")"):
            first -= 1
        return self.code[first].line


def functions(text):
    return Finder(tokenize(text)).functions


def calls(tokens):
    """(name, line) of everything that looks like a call."""
    for token, after in zip(tokens, tokens[1:]):
        if token.kind == "word" and after.text == "(" and token.text not in CONTROL:
            yield token.text, token.line
