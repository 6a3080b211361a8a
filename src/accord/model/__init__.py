"""Models: loading, packed forward, heads, adapters, and roles on one base."""

from accord.model.notices import leave_out_idle_notices

leave_out_idle_notices()  # before any module here imports peft, and with it bitsandbytes
