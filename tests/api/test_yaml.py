"""The worst files that people hand in: each gets sentences with a line or a field, never a traceback."""

from __future__ import annotations

import pytest

from kubedistill_api.documents import InvalidDocumentError, read_job

JOB = """\
apiVersion: kubedistill.io/v1alpha1
kind: DistillationJob
metadata: {name: small}
spec:
  teachers: [{name: big, model: {uri: "hf://owner/big"}, serving: {}}]
  student: {model: {uri: "hf://owner/small"}}
  data: {train: {uri: "s3://bucket/train.jsonl"}}
  output: {uri: "s3://bucket/model"}
"""
LAUGHS = "".join(f"  x{n}: &x{n} [{', '.join([f'*x{n - 1}' if n else 'x'] * 9)}]\n" for n in range(9))

REFUSED: dict[str, tuple[str, str]] = {
    "empty": ("", "the file is empty: write one DistillationJob"),
    "only a comment": ("# soon\n---\n", "the file is empty"),
    "a list": ("- kind: DistillationJob\n", "this is a list: a DistillationJob is a mapping with apiVersion, kind"),
    "a word": ("hello\n", "this is the text 'hello': a DistillationJob is a mapping"),
    "a number": ("42\n", "this is a value: a DistillationJob is a mapping"),
    "wrong kind": (JOB.replace("DistillationJob", "Deployment"), "kind: write DistillationJob (found 'Deployment')"),
    "no kind": (JOB.replace("kind: DistillationJob\n", ""), "kind: this field is required: write DistillationJob"),
    "no version": (JOB.replace("apiVersion: kubedistill.io/v1alpha1\n", ""), "apiVersion: this field is required"),
    "wrong version": (JOB.replace("v1alpha1", "v1"), "apiVersion: input should be 'kubedistill.io/v1alpha1'"),
    "two jobs": (f"{JOB}---\n{JOB}", "there are 2 DistillationJobs in this file: write one"),
    "other documents": ("kind: Secret\n---\nkind: Pod\n", "none of the 2 documents is of kind DistillationJob"),
    "tabs": (JOB.replace("  student", "\tstudent"), "indent with blanks (line 6, column 1)"),
    "wrong indentation": (JOB.replace("  student", "   student"), "(line 6, column 4)"),
    "open bracket": (f"{JOB}  x: [1, 2\n", "while parsing a flow sequence that begins on line 9"),
    "open quote": (f'{JOB}  x: "a\n', "while scanning a quoted scalar that begins on line 9"),
    "unknown alias": (f"{JOB}  x: *nope\n", "found undefined alias 'nope' (line 9, column 6)"),
    "zero byte": (f"{JOB}\0", "a character that YAML does not allow"),
    "code": (f"{JOB}  task: !!python/name:os.system\n", "means nothing here: leave it out (line 9, column 9)"),
    "date": (f"{JOB}  task: !!timestamp 2001-01-01\n", "'tag:yaml.org,2002:timestamp' means nothing here"),
    "bytes": (f"{JOB}  task: !!binary aGk=\n", "'tag:yaml.org,2002:binary' means nothing here"),
    "set": (f"{JOB}  task: !!set {{a, b}}\n", "'tag:yaml.org,2002:set' means nothing here"),
    "no int": (f"{JOB}  maxRows: !!int x\n", "'x' is no int (line 9, column 12)"),
    "no float": (f"{JOB}  maxRows: !!float x\n", "'x' is no float"),
    "no bool": (f"{JOB}  suspend: !!bool x\n", "'x' is no bool"),
    "endless int": (f"{JOB}  maxRows: {'9' * 5000}\n", "is no int (line 9, column 12)"),
    "key that is a list": (f"{JOB}  ? [a]\n  : b\n", "a key must be a text"),
    "key that is a number": (f"{JOB}  1: b\n", "spec.1: there is no such field"),
    "template": ("{{ .Values.job }}\n", "a key must be a text"),
    "deep": (f"{JOB}  x: {'[' * 3000}{']' * 3000}\n", "nested too deeply"),
    "inside itself": (f"{JOB}  x: &x [*x]\n", "an alias stands inside itself"),
    "billion laughs": (f"{JOB}{LAUGHS}", "it stands for more than 100,000 values"),
    "no mapping as spec": (JOB[: JOB.index("spec")] + "spec: 3\n", "spec: input should be an object (found 3)"),
    "no mapping as metadata": (JOB.replace("{name: small}", "[]"), "metadata: input should be an object"),
    "no name": (JOB.replace("{name: small}", "{}"), "metadata.name: this field is required"),
    "name that is no label": (JOB.replace("small}\n", "Small_Job}\n", 1), "metadata.name: the name of a Distill"),
    "endless text": (JOB.replace("owner/small", "o" * 9999), f"(found 'hf://{'o' * 54}…)"),
    "not a number": (f"{JOB}  data2: .nan\n", "spec.data2: there is no such field"),
}


@pytest.mark.parametrize(("text", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_file_is_told_what_is_wrong_and_where(text: str, sentence: str) -> None:
    with pytest.raises(InvalidDocumentError) as refused:
        read_job(text)
    assert any(sentence in str(problem) for problem in refused.value.problems), refused.value
    assert all(len(str(problem)) < 400 and "\n" not in str(problem) for problem in refused.value.problems)


def test_every_repeated_key_and_every_other_problem_come_at_once() -> None:
    text = JOB.replace("{name: small}", "{name: small, name: tiny}").replace("serving: {}", "serving: {gpusPerNode: x}")
    with pytest.raises(InvalidDocumentError) as refused:
        read_job(f"{text}  task: Poetry\n  task: Math\n")
    assert [str(problem).split(" (")[0] for problem in refused.value.problems][:2] == [
        "the key 'name' stands twice",
        "the key 'task' stands twice",
    ]
    assert [problem.path for problem in refused.value.problems][2:] == ["spec.teachers[0].serving.gpusPerNode"]


@pytest.mark.parametrize(
    "text",
    [
        JOB.replace("\n", "\r\n"),
        f"\ufeff{JOB}",
        f"{JOB}---\nkind: Secret\n",
        f"# a comment\n---\n{JOB}---\n",
        f"{JOB}  training: null\n",
        JOB.replace('{uri: "hf://owner/big"}', '&m {uri: "hf://owner/big"}').replace('{uri: "hf://owner/small"}', "*m"),
    ],
    ids=["crlf", "byte-order-mark", "secret-beside-it", "empty-documents", "null-for-a-default", "alias"],
)
def test_what_kubectl_takes_is_taken(text: str) -> None:
    assert read_job(text).metadata.name == "small"
