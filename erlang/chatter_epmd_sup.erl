%% SPDX-License-Identifier: Apache-2.0
%%
%% What of Chatter's epmd runs in a node, before any application:
%%
%%     net_sup (one_for_all, intensity 0: a child that dies takes the node down)
%%      └── chatter_epmd_sup       own intensity; keeps the table of the agent
%%           ├── chatter_epmd_registry   serves, if the agent says so
%%           └── chatter_epmd_agent      keeps the node's name registered
%%
%% Either child may die alone. When the registry does, the host's nodes, this one too, find
%% another; when the agent does, its successor reads from the table what to register.
-module(chatter_epmd_sup).
-behaviour(supervisor).

-export([start_link/0, init/1]).

%% @doc Start the supervisor.
-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() -> supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% @private
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    Table = chatter_epmd_agent:new_table(),
    Registry = #{id => chatter_epmd_registry,
                 start => {chatter_epmd_registry, start_link, [{local, chatter_epmd_registry}]},
                 shutdown => 1000},
    Agent = #{id => chatter_epmd_agent,
              start => {chatter_epmd_agent, start_link, [Table]},
              shutdown => 1000},
    {ok, {#{strategy => one_for_one, intensity => 20, period => 10}, [Registry, Agent]}}.
