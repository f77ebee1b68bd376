package main

import (
	"context"
	"io"
	"os"
)

// throughHandler are the tests that assert what any runtime owes: lifecycle, logs, exec, sharing, and what survives a death.
const throughHandler = "^(TestHappyPath|TestExitCodes|TestKilledFromOutside|TestOOM|TestStop|TestRestart|TestExecTimeout|TestTTY|" +
	"TestLogFormat|TestReopenLog|TestSharedNamespaces|TestSharedPID|TestHostNamespaces|TestKill|TestKillRepeatedly|" +
	"TestExitWhileDead|TestUserNamespace|TestUserNamespaceModes|TestUserNamespaceSurvives|TestVolumesThatImagesDefine|TestVolumesThatImagesDefineInUser|TestDaemonRestart|TestPodRemovedAfterKill|TestHostileMountTarget)$"

// endToEndThrough is endToEnd with all pods of these tests run by another handler.
func endToEndThrough(handler string) step {
	return func(ctx context.Context, out io.Writer) result {
		_ = os.Setenv("E2E_HANDLER", handler)
		defer os.Unsetenv("E2E_HANDLER")
		return goTest(ctx, out, "-count=1", "-timeout", "20m", "-run", throughHandler, "./test/e2e")
	}
}
