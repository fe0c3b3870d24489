"""Every reason that a condition, an event, a stage or a program's last words may carry."""

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """What a program's exit code means to the operator."""

    DONE = 0
    USER_ERROR = 1
    """The user's input is wrong: never retried."""
    INTERRUPTED = 143
    """Stopped by SIGTERM after saving: retried without counting."""
    ENVIRONMENT = 203
    """The environment or the program itself failed: retried."""


class Reason(StrEnum):
    """Machine-readable reasons, one vocabulary from a program's last words to the conditions."""

    # Life of an object
    ACCEPTED = "Accepted"
    PENDING = "Pending"
    WAITING = "Waiting"
    MEASURING = "Measuring"
    RELOCATING = "Relocating"
    CONVERTING = "Converting"
    PREFLIGHT = "Preflight"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    PREDICTING = "Predicting"
    SERVING = "Serving"
    EXPORTING = "Exporting"
    TRACKING = "Tracking"
    SUCCEEDED = "Succeeded"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    NOT_REQUESTED = "NotRequested"
    RETRYING = "Retrying"
    QUEUED = "Queued"
    STOPPING = "Stopping"
    GATE_PASSED = "GatePassed"
    GATE_FAILED = "GateFailed"
    GATE_INCONCLUSIVE = "GateInconclusive"

    # The specification
    INVALID_SPEC = "InvalidSpec"
    UNSUPPORTED = "Unsupported"
    NOT_ALLOWED = "NotAllowed"
    DEPENDENCY_FAILED = "DependencyFailed"

    # Sources and artifacts
    UNKNOWN_SCHEME = "UnknownScheme"
    SOURCE_NOT_FOUND = "SourceNotFound"
    REVISION_NOT_FOUND = "RevisionNotFound"
    AUTHENTICATION_REQUIRED = "AuthenticationRequired"
    ACCESS_DENIED = "AccessDenied"
    SOURCE_UNAVAILABLE = "SourceUnavailable"
    NETWORK_UNREACHABLE = "NetworkUnreachable"
    DOWNLOAD_STALLED = "DownloadStalled"
    CHECKSUM_MISMATCH = "ChecksumMismatch"
    UNSAFE_CONTENT = "UnsafeContent"
    ARTIFACT_CORRUPT = "ArtifactCorrupt"
    CONVERSION_FAILED = "ConversionFailed"

    # Model and tokenizer
    MODEL_UNREADABLE = "ModelUnreadable"
    TOKENIZER_NOT_FOUND = "TokenizerNotFound"
    TOKENIZER_MISMATCH = "TokenizerMismatch"
    TARGET_MODULES_NOT_FOUND = "TargetModulesNotFound"

    # Data
    DATASET_UNREADABLE = "DatasetUnreadable"
    DATASET_EMPTY = "DatasetEmpty"
    COLUMN_NOT_FOUND = "ColumnNotFound"
    SPLIT_EMPTY = "SplitEmpty"
    COMPLETIONS_EMPTY = "CompletionsEmpty"
    TOO_MANY_ROWS_LOST = "TooManyRowsLost"

    # Training and evaluation
    SCRIPT_FAILED = "ScriptFailed"
    LOSS_DIVERGED = "LossDiverged"
    CHECKPOINT_CORRUPT = "CheckpointCorrupt"
    METRIC_UNAVAILABLE = "MetricUnavailable"
    CANDIDATES_IDENTICAL = "CandidatesIdentical"

    # Exports
    MERGE_INEXACT = "MergeInexact"
    EXPORT_FAILED = "ExportFailed"

    # Tracking
    TRACKING_FAILED = "TrackingFailed"

    # Notifications
    NOTIFICATION_FAILED = "NotificationFailed"

    # Machine
    OUT_OF_MEMORY = "OutOfMemory"
    DISK_FULL = "DiskFull"
    READ_ONLY_FILE_SYSTEM = "ReadOnlyFileSystem"
    STATE_LOCKED = "StateLocked"
    STATE_CORRUPT = "StateCorrupt"
    INTERRUPTED = "Interrupted"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    STALLED = "Stalled"
    CRASHED = "Crashed"
    WORKER_LOST = "WorkerLost"
    INTERNAL = "Internal"

    # Cluster
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONFIGURATION_MISSING = "ConfigurationMissing"
    CONTAINER_START_FAILED = "ContainerStartFailed"
    ROLLOUT_STALLED = "RolloutStalled"
    UNSCHEDULABLE = "Unschedulable"
    VOLUME_UNAVAILABLE = "VolumeUnavailable"
    VOLUME_CONFLICT = "VolumeConflict"
    QUOTA_EXCEEDED = "QuotaExceeded"
    QUEUE_INADMISSIBLE = "QueueInadmissible"
    POD_SECURITY_VIOLATION = "PodSecurityViolation"
    FORBIDDEN = "Forbidden"
    REJECTED = "Rejected"
    NAME_CONFLICT = "NameConflict"
    NAMESPACE_TERMINATING = "NamespaceTerminating"
    API_UNAVAILABLE = "ApiUnavailable"
    EVICTED = "Evicted"
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    CANCELLED = "Cancelled"


LIFE_CYCLE_REASONS: frozenset[Reason] = frozenset(
    {
        Reason.ACCEPTED,
        Reason.PENDING,
        Reason.WAITING,
        Reason.MEASURING,
        Reason.RELOCATING,
        Reason.CONVERTING,
        Reason.PREFLIGHT,
        Reason.TRAINING,
        Reason.EVALUATING,
        Reason.PREDICTING,
        Reason.SERVING,
        Reason.EXPORTING,
        Reason.TRACKING,
        Reason.SUCCEEDED,
        Reason.SUSPENDED,
        Reason.RESUMED,
        Reason.NOT_REQUESTED,
        Reason.RETRYING,
        Reason.QUEUED,
        Reason.STOPPING,
        Reason.GATE_PASSED,
    }
)
"""Reasons that tell of ordinary life; every other reason has an entry in the troubleshooting guide."""
