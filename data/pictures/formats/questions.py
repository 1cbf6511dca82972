"""Readers of questions about pictures: ChartQA's and DocVQA's formats. A question becomes a conversation of two turns,
with the picture before the question."""

from data.pictures.formats.base import Record, RecordContext, one_of, question, text_of
from data.pictures.sample import Picture, Sample, SampleProblem

CHARTQA_NEEDS = "`query` and `label`, with `imgname` or `image`"
CHARTQA_FIELDS = frozenset(("imgname", "image", "query", "label", "id", "human_or_machine", "type"))
DOCVQA_NEEDS = "`question` and `answers`, with `image`"
DOCVQA_FIELDS = frozenset(
    ("questionId", "question", "image", "answers", "docId", "ucsf_document_id", "ucsf_document_page_no", "data_split",
     "question_types", "id")
)  # fmt: skip


def is_chartqa(record: Record) -> bool:
    return "query" in record and "label" in record


def read_chartqa(record: Record, context: RecordContext) -> Sample:
    """`label` is a text, or a list of which one is learned."""
    asked = text_of(record, "query")
    return question([_picture(record, "imgname", context)], asked, one_of(record["label"], "label", asked))


def is_docvqa(record: Record) -> bool:
    return "question" in record and "answers" in record


def read_docvqa(record: Record, context: RecordContext) -> Sample:
    """One of several right answers is learned."""
    asked = text_of(record, "question")
    return question([_picture(record, "image", context)], asked, one_of(record["answers"], "answers", asked))


def _picture(record: Record, name: str, context: RecordContext) -> Picture:
    name = name if record.get(name) is not None else "image"
    if record.get(name) is not None:
        return context.shelf.find(record[name], name)
    if len(context.beside) != 1:
        raise SampleProblem("missing", f"{name}: is missing; expected the picture of the question")
    return context.beside[0]
