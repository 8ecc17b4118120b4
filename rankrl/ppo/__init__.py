from rankrl.ppo import imports

imports.install()
