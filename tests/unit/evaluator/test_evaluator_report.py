"""The reports say the verdict first, need nothing from elsewhere, and trust no text from data or models."""

import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from finetuning_api.metrics import GateResult, GateRule, Metric, Verdict, facts_of
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import TERMINATION_LOG_BYTES, EvaluateResult, JobIdentity, LastWords, Provenance
from finetuning_evaluator.parts import Origin
from finetuning_evaluator.report_html import render_html
from finetuning_evaluator.report_markdown import render_markdown
from finetuning_evaluator.results import (
    CandidateSummary,
    DatasetSummary,
    Environment,
    GateDecision,
    MetricComparison,
    MetricResult,
    MetricValue,
    Results,
    Settings,
)
from finetuning_evaluator.samples import Sample, SampleFile, telling
from finetuning_evaluator.wording import origins, outcome
from finetuning_workload.program import encode_last_words

DIGEST = f"sha256:{'0' * 64}"


def metric_result(metric: str, *, base: float = 0.2, tuned: float = 0.6) -> MetricResult:
    values = [
        MetricValue(candidate=name, value=value, ci_low=value - 0.1, ci_high=value + 0.1, samples=100)
        for name, value in (("base", base), ("tuned", tuned))
    ]
    comparison = MetricComparison(
        candidate="tuned",
        against="base",
        delta=tuned - base,
        ci_low=0.3123456,
        ci_high=0.4876543,
        p_value=0.0001,
        p_value_holm=0.02,
        minimum_detectable_effect=0.2505,
        test="paired permutation",
        wins=70,
        ties=20,
        losses=10,
        samples=100,
    )
    return MetricResult(
        metric=metric,
        lower_is_better=False,
        unit=facts_of(metric).unit,
        signature="s",
        values=tuple(values),
        comparisons=(comparison,),
    )


def gate_decision(verdict: Verdict = Verdict.PASS, *, message: str = "rougeL improved") -> GateDecision:
    rule = GateRule(metric=Metric.ROUGE_L, min_delta=0.02)
    return GateDecision(rule=rule, result=GateResult(metric=Metric.ROUGE_L, verdict=verdict, message=message))


def results(**changes: object) -> Results:
    provenance = Provenance(source="hf://owner/name", digest=DIGEST)
    candidates = tuple(
        CandidateSummary(
            name=name, model=provenance, tokenizer=provenance, parameters=1, load_seconds=1, seconds={"generation": 2.0}
        )
        for name in ("base", "tuned")
    )
    made = Results(
        job=JobIdentity(kind="FineTuningJob", name="support-triage"),
        config_digest=DIGEST,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        wall_seconds=12.5,
        verdict=Verdict.PASS,
        environment=Environment(
            python="3.11",
            finetuning_operator="0.1",
            torch="2",
            transformers="5",
            peft="0",
            device="cpu",
            dtype="float32",
            dtype_reason="measured",
            threads=2,
        ),
        dataset=DatasetSummary(provenance=provenance, rows=100, row_ids_digest=DIGEST),
        settings=Settings(max_length=1024, max_new_tokens={"base": 48}, bootstrap_samples=10_000, seed=42),
        candidates=candidates,
        metrics=(metric_result(Metric.ROUGE_L), metric_result(Metric.EXACT_MATCH)),
        gates=(gate_decision(),),
        warnings=("only 12 held-out rows",),
    )
    return made.model_copy(update=changes)


def sample(row_id: str = "r1", *, text: str = "billing", tuned: float = 1.0, base: float = 0.0) -> Sample:
    return Sample(
        row_id=row_id,
        prompt=f"prompt of {row_id}",
        reference="billing",
        outputs={"base": "no idea", "tuned": text},
        scores={"base": {Metric.ROUGE_L: base}, "tuned": {Metric.ROUGE_L: tuned}},
    )


def rows(*samples: Sample) -> list[SampleFile]:
    return [SampleFile("samples.jsonl", "Samples", samples)]


class References(HTMLParser):
    """Collects every attribute and style that could fetch something, and every element that could run something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        fetching = {"src", "href", "srcset", "action", "data", "xlink:href", "poster", "background"}
        self.found += [f"{tag}.{name}" for name, _ in attrs if name in fetching or name.startswith("on")]


def test_the_html_report_refers_to_nothing_outside_and_runs_nothing() -> None:
    html = render_html(results(), rows(sample()))
    parser = References()
    parser.feed(html)

    assert parser.found == []
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(parser.tags)
    assert not re.search(r"@import|url\(|https?://", html)


def test_the_html_report_follows_the_reader_s_color_scheme() -> None:
    assert "prefers-color-scheme: dark" in render_html(results(), [])


def test_text_from_a_model_is_shown_and_never_interpreted() -> None:
    attack = "</pre><script>alert(1)</script>"
    html = render_html(results(warnings=(attack,)), rows(sample(text=attack)))

    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2


@pytest.mark.parametrize(
    ("verdict", "word"),
    [(Verdict.PASS, "Passed"), (Verdict.FAIL, "Failed"), (Verdict.INCONCLUSIVE, "Inconclusive"), (None, "No gate")],
)
def test_the_verdict_comes_before_every_number(verdict: Verdict | None, word: str) -> None:
    changed = results(verdict=verdict)

    for report in (render_markdown(changed, rows(sample())), render_html(changed, rows(sample()))):
        body = report.partition("<body>")[2] or report
        assert body.index(word) < body.index("0.2000")


def test_the_markdown_report_holds_values_intervals_differences_gate_warnings_and_digests() -> None:
    report = render_markdown(results(), rows(sample()))

    assert "| rougeL | share, 0 to 1 | higher | 0.2000 [0.1000, 0.3000] | 0.6000 [0.5000, 0.7000] |" in report
    assert (
        "| rougeL | tuned - base | +0.4000 | [0.3123, 0.4877] | < 0.001 (0.020) | 0.2505 | 70 / 20 / 10 | better |"
        in report
    )
    assert "- **Pass** rougeL improved" in report
    assert "- only 12 held-out rows" in report
    assert f"hf://owner/name {DIGEST}" in report
    assert "prompt of r1" in report


@pytest.mark.parametrize(
    ("groups", "rows", "unit"),
    [(None, "100 held-out rows, ", "rows"), (15, "100 held-out rows in 15 groups, ", "groups")],
)
def test_the_reports_say_what_intervals_resample(groups: int | None, rows: str, unit: str) -> None:
    changed = results(dataset=results().dataset.model_copy(update={"groups": groups}))

    for report in (render_markdown(changed, []), render_html(changed, [])):
        assert rows in report
        assert f"resamples of {unit}." in report


def test_a_text_with_a_code_fence_stays_inside_its_block() -> None:
    report = render_markdown(results(), rows(sample(text="```\nnot the end")))

    assert "\n````\n```\nnot the end\n````\n" in report


def test_a_difference_is_better_only_when_interval_and_test_agree() -> None:
    metric = metric_result(Metric.ROUGE_L)
    (found,) = metric.comparisons

    assert outcome(metric, found) == "better"
    assert outcome(metric, found.model_copy(update={"p_value_holm": 0.12})) == "unclear"
    assert outcome(metric, found.model_copy(update={"p_value": 0.12, "p_value_holm": None})) == "unclear"
    assert outcome(metric, found.model_copy(update={"ci_low": -0.01})) == "unclear"
    assert outcome(metric.model_copy(update={"lower_is_better": True}), found) == "worse"


def test_an_output_of_white_space_is_shown_as_nothing() -> None:
    blank = rows(sample(text="\n\n "))

    for report in (render_markdown(results(), blank), render_html(results(), blank)):
        assert report.count("(nothing)") == 1


def test_without_samples_and_comparisons_the_reports_are_still_whole() -> None:
    alone = results(candidates=results().candidates[:1], gates=(), verdict=None, warnings=())
    alone = alone.model_copy(
        update={"metrics": tuple(metric.model_copy(update={"comparisons": ()}) for metric in alone.metrics)}
    )

    assert "No gate was set" in render_markdown(alone, [])
    assert "Differences" not in render_html(alone, [])


def test_the_samples_shown_reach_from_the_greatest_gain_to_the_greatest_loss() -> None:
    many = [sample(str(index), tuned=index / 10, base=0.5) for index in range(11)]

    shown = telling(many, metric_result(Metric.ROUGE_L), against="base", count=3)

    assert [found.row_id for found in shown] == ["10", "5", "0"]


def test_samples_of_a_task_stand_in_a_section_of_their_own_and_rows_without_an_answer_in_none() -> None:
    silent = sample("s1").model_copy(update={"outputs": {}})
    files = [*rows(silent), SampleFile("samples/colours.jsonl", "Samples of colours", (sample("7"), sample("8")))]

    markdown, html = render_markdown(results(), files), render_html(results(), files)

    for report in (markdown, html):
        assert report.count("Samples") == 1
        assert "prompt of 7" in report
        assert "prompt of s1" not in report
    assert "\n\n## Samples of colours\n\n### Row 7\n" in markdown
    assert "All rows are in samples/colours.jsonl." in html


def test_a_long_prompt_is_shown_with_the_question_that_it_ends_with() -> None:
    long = sample().model_copy(update={"prompt": f"first {'an example, ' * 200}the question"})

    report = render_markdown(results(), rows(long))

    assert "first an example" in report
    assert "the question" in report
    assert report.count("an example") < 60


def test_the_short_form_rounds_and_keeps_what_a_status_shows() -> None:
    row = results().summary().rows[0]

    assert row.model_dump(mode="json", exclude_none=True) == {
        "metric": "rougeL",
        "base": 0.2,
        "tuned": 0.6,
        "delta": 0.4,
        "ci_low": 0.312346,
        "ci_high": 0.487654,
        "samples": 100,
    }


def test_last_words_hold_all_rows_and_verdicts_however_many_rules_and_warnings_there_are() -> None:
    crowded = results(
        metrics=tuple(metric_result(metric) for metric in Metric),
        gates=tuple(gate_decision(message="long " * 200) for _ in range(16)),
        warnings=("long " * 100,) * 20,
    )

    encoded = encode_last_words(LastWords(reason=Reason.SUCCEEDED, result=crowded.summary()))
    read = LastWords.model_validate_json(encoded).result

    assert len(encoded) <= TERMINATION_LOG_BYTES
    assert isinstance(read, EvaluateResult)
    assert [row.metric for row in read.rows] == list(Metric)
    assert [gate.verdict for gate in read.gates] == [Verdict.PASS] * 16


def test_last_words_keep_every_gated_row_where_long_numbers_leave_no_room_for_all() -> None:
    def long(metric: Metric) -> MetricResult:
        made = metric_result(metric, base=-0.000123456789, tuned=-0.000123456789)
        reference = MetricValue(candidate="reference", value=-1.23456789e-12, samples=123_456)
        (found,) = made.comparisons
        changes = {"delta": -0.000123456789, "ci_low": -1.23456789e-11, "ci_high": -0.000123456789}
        return made.model_copy(
            update={"values": (*made.values, reference), "comparisons": (found.model_copy(update=changes),)}
        )

    rule = GateRule(metric=Metric.LATENCY, max=1)
    decided = GateResult(metric=Metric.LATENCY, verdict=Verdict.INCONCLUSIVE, message="long " * 200)
    crowded = results(
        metrics=tuple(map(long, Metric)), gates=tuple(GateDecision(rule=rule, result=decided) for _ in range(16))
    )

    encoded = encode_last_words(LastWords(reason=Reason.SUCCEEDED, result=crowded.summary()))
    read = LastWords.model_validate_json(encoded).result

    assert len(encoded) <= TERMINATION_LOG_BYTES
    assert isinstance(read, EvaluateResult)
    assert len(read.gates) == 16
    assert len(read.rows) > 12
    assert Metric.LATENCY in {row.metric for row in read.rows}
    assert read.warnings == ("see report.md for more metrics, messages and warnings",)


def test_results_are_read_back_as_they_were_written() -> None:
    written = results()

    assert Results.model_validate_json(written.model_dump_json(by_alias=True)) == written


def test_scores_that_were_there_already_are_told_from_those_of_this_evaluation() -> None:
    origin = Origin(
        job=JobIdentity(kind="EvaluationJob", name="first<b>"), computed_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    )
    base, tuned = results().candidates
    metrics = tuple(metric_result(each) for each in (Metric.ROUGE_L, Metric.EXACT_MATCH, "tone", Metric.COLA))
    told = results(
        candidates=(base.model_copy(update={"reused": {"generation": origin}}), tuned), metrics=metrics, gates=()
    )
    without = results()

    assert origins(told) == (
        ("base", "rougeL, exact-match", "2026-01-02 03:04 UTC by EvaluationJob first<b>"),
        ("base", "tone, cola", "by this evaluation"),
        ("tuned", "rougeL, exact-match, tone, cola", "by this evaluation"),
    )
    assert "| base | rougeL, exact-match | 2026-01-02 03:04 UTC by EvaluationJob first<b> |" in render_markdown(
        told, []
    )
    assert "<td>2026-01-02 03:04 UTC by EvaluationJob first&lt;b&gt;</td>" in render_html(told, [])
    for rendered in (render_markdown(without, []), render_html(without, [])):
        assert "there already" not in rendered
