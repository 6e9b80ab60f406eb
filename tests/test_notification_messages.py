"""What a notification says, by its type's config; and what a config may not say."""

from __future__ import annotations

import pytest

from pgqueue.errors import InvalidArgumentError, InvalidNameError, InvalidPayloadError
from pgqueue.notifications import JobNotificationConfig, NotificationPriority
from pgqueue.notifications.message import message_of


def message(config=None, **changes):
    payload = {
        "config": (config or JobNotificationConfig(event_type="job.done")).as_json(),
        "jobId": 7, "type": "pattern:analyze", "queue": "pattern", "state": "completed", "reason": None, "attempt": 1,
        "result": {"found": 3}, "error": None, "at": "2026-11-25T12:00:00+00:00", **changes,
    }  # fmt: skip
    return message_of(payload, 99)


def test_a_completion_says_so_by_default():
    made = message()
    assert made.title == "Pattern Analyze Completed"
    assert made.message == 'Pattern analyze job 7 has completed successfully: {"found": 3}'
    assert (made.priority, made.event_type, made.job_id, made.delivery_id) == ("medium", "job.done", 7, 99)


def test_a_failure_says_so_by_default_and_is_more_urgent():
    made = message(state="failed", reason="error", result=None, error="no such lane")
    assert made.title == "Pattern Analyze Failed"
    assert made.message == "Pattern analyze job 7 failed: no such lane"
    assert made.priority is NotificationPriority.HIGH
    assert message(state="failed", reason="expired", result=None).message.endswith("failed: expired")


def test_a_title_of_ones_own_gets_the_suffix_unless_it_is_custom():
    plain = JobNotificationConfig(event_type="e", title_template="Lanes of {queue}")
    custom = JobNotificationConfig(event_type="e", title_template="Lanes of {queue}", use_custom_title=True)
    assert message(plain).title == "Lanes of pattern Completed"
    assert message(custom).title == "Lanes of pattern"
    assert message(custom, state="failed").title == "Lanes of pattern"


def test_a_custom_message_is_made_of_the_result_alone():
    config = JobNotificationConfig(
        event_type="job.shipment_delay",
        title_template="Shipment Delay Notice!",
        message_template="{result}",
        tags=("job", "shipment", "delay"),
        use_custom_title=True,
        use_custom_message=True,
    )
    made = message(config, type="delay_shipment", result="Shipment 4 arrives on Friday")
    assert (made.title, made.message) == ("Shipment Delay Notice!", "Shipment 4 arrives on Friday")
    assert made.tags == ("job", "shipment", "delay")
    failed = message(config, type="delay_shipment", state="failed", result=None, error="no such shipment")
    assert failed.message == "Delay shipment job 7 failed: no such shipment"


def test_a_message_template_may_name_all_there_is():
    template = "{job_id} {type} {queue} {state} {reason} {attempt} {result} {error}"
    config = JobNotificationConfig(event_type="e", message_template=template)
    made = message(config, state="failed", reason="error", error="boom {result}", attempt=3, result=None)
    assert made.message == "7 pattern:analyze pattern failed error 3  boom {result}"


def test_long_texts_are_cut():
    made = message(result="x" * 10_000)
    assert len(made.message) == 4_000
    assert made.message.endswith("…")


def test_a_config_survives_being_kept_and_a_newer_one_is_read():
    config = JobNotificationConfig(event_type="e", tags=("a",), channels=("inbox", "ops"), recipients=("ann",))
    assert JobNotificationConfig.of({**config.as_json(), "colour": "red"}) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"event_type": "a b"}, "event type"),
        ({"priority": "urgent"}, "priority"),
        ({"title_template": "{result.__class__}"}, "title_template"),
        ({"message_template": "{oops}"}, "oops"),
        ({"message_template": "{"}, "message_template"),
        ({"message_template": "{job_id}", "use_custom_message": True}, "job_id"),
        ({"use_custom_title": True}, "title_template"),
        ({"channels": "log"}, "channels"),
        ({"channels": ("a b",)}, "channel"),
        ({"recipients": (1,)}, "recipients"),
    ],
)
def test_a_config_that_breaks_a_rule_is_refused_with_its_name(values, said):
    with pytest.raises((InvalidArgumentError, InvalidNameError), match=said):
        JobNotificationConfig(**{"event_type": "e", **values})


@pytest.mark.parametrize("payload", [{}, {"config": {}}, {"config": {"event_type": "e"}, "state": "completed"}])
def test_what_no_jobs_end_wrote_is_no_notification(payload):
    with pytest.raises(InvalidPayloadError, match="not a notification"):
        message_of(payload, 1)
