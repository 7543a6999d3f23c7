package protect

// InstallPlugin is for tests of the command.
var InstallPlugin = installPlugin
