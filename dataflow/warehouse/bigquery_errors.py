"""What BigQuery refuses, as sentences that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from google.api_core import exceptions
from google.auth import exceptions as auth

from lockstep.errors import DataError

LOGIN = (
    "run `gcloud auth application-default login`, name a key file in GOOGLE_APPLICATION_CREDENTIALS, "
    "or run where a service account is attached"
)
_ROLES = "roles/bigquery.jobUser on the project, roles/bigquery.dataEditor on the data set of [data.bigquery], "
_ROLES += "roles/bigquery.dataViewer on the source tables, roles/bigquery.readSessionUser on the project"


@contextmanager
def sentences(what: str, sql: str = "", location: str = "") -> Iterator[None]:
    """Turn the errors of Google's clients into a DataError.

    Args:
        what: what was being done, such as `making the table events`.
        sql: the query, whose head is shown.
        location: where the job ran.
    """
    try:
        yield
    except auth.GoogleAuthError as error:
        raise DataError(
            f"{what} failed, for there are no usable Google Cloud credentials ({error}): {LOGIN}"
        ) from error
    except (exceptions.GoogleAPIError, ConnectionError) as error:
        cause = error.cause if isinstance(error, exceptions.RetryError) else error
        shown = f". In: {sql.strip()[:500]}" if sql else ""
        raise DataError(f"{what} failed: {_sentence(cause, location)}{shown}") from error


def _sentence(error: BaseException, location: str) -> str:
    described = (getattr(error, "errors", None) or [{}])[0]
    described = described if isinstance(described, dict) else {}
    message = described.get("message") or getattr(error, "message", None) or error
    message = " ".join(str(message).split())[:600]
    job = getattr(getattr(error, "query_job", None), "job_id", None)
    advice = _advice(str(described.get("reason", "")), message, error, location)
    return message + (f" (job {job})" if job else "") + (f"; {advice}" if advice else "")


def _advice(reason: str, message: str, error: BaseException, location: str) -> str:
    if reason == "bytesBilledLimitExceeded" or "limit for bytes billed" in message:
        return (
            "raise [data.bigquery] max_bytes_billed, or read less: `lockstep examples --dry-run` says what costs what"
        )
    if reason == "quotaExceeded" or reason == "rateLimitExceeded":
        return "a quota of the project is used up: wait, or ask for more on the page Quotas of the console"
    if reason == "billingNotEnabled":
        return "link a billing account to the project, or set another in [data.bigquery] project"
    if reason in ("resourcesExceeded", "responseTooLarge"):
        return "the query is too large for one of BigQuery's workers: lower the number of rows or the history"
    if "Dataset" in message and "not found in location" in message:
        return (
            f"jobs run in {location or 'the default location'}: set [data.bigquery] location to that of the source "
            "tables, with a data set of that location, for BigQuery joins no tables across locations"
        )
    if isinstance(error, exceptions.Forbidden | exceptions.PermissionDenied) or reason == "accessDenied":
        return f"grant the account that runs this what it lacks; a run needs {_ROLES}"
    if isinstance(error, exceptions.NotFound) or reason == "notFound":
        return "correct the name in [data.tables] or [data.bigquery]; an intermediate table may have expired"
    if isinstance(error, exceptions.ServerError | ConnectionError):
        return "BigQuery did not answer, also when asked again: try later"
    return ""
